// Asking the dashboard's server. Every failure is an Error with a sentence for people.

/** Return the JSON of `path` with these parameters; those that are null are left out. */
export async function ask(path, parameters = {}, signal = undefined) {
  let response;
  try {
    response = await fetch(address(path, parameters), { signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The dashboard does not answer: it was ended, or the network is down. This page goes on trying.");
  }
  if (response.status === 401) throw new Error("The dashboard has another token now. Load this page again.");
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Error(`The dashboard answered with status ${response.status} and no data. Load this page again.`);
  }
  if (answer && answer.error) throw new Error(answer.error);
  return answer;
}

/** Return the address of the page of a batch; a data set without a name is "-". */
export function batchAddress(daemon, dataset, epoch, batch, more = {}) {
  return address(`/batch/${encodeURIComponent(dataset || "-")}/${epoch}/${batch}`, { daemon, ...more });
}

/** Return an address with its query. */
export function address(path, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined) query.set(name, value);
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}
