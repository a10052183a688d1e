// Numbers as people read them.

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const ONE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

export function count(n) {
  return n === null || n === undefined ? "–" : WHOLE.format(n);
}

/** A rate: one digit after the point where it is small. */
export function rate(n) {
  if (n === null || n === undefined) return "–";
  return n > 0 && n < 10 ? ONE.format(n) : WHOLE.format(n);
}

export function share(part) {
  if (part === null || part === undefined) return "–";
  const percent = part * 100;
  return percent > 0 && percent < 1 ? "<1%" : `${WHOLE.format(percent)}%`;
}

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  let size = n;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(size) < 1024) return `${unit === "B" || size >= 100 ? WHOLE.format(size) : ONE.format(size)} ${unit}`;
    size /= 1024;
  }
  return `${ONE.format(size)} TiB`;
}

/** A span of time: "41 s", "12 min", "3 h 5 min", "2 d 4 h". */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  const minutes = Math.round(s / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${hours / 24} d`;
}

/** "1 reader", "2 readers"; "1 class", "2 classes". */
export function counted(n, noun, nouns = `${noun}s`) {
  return `${count(n)} ${n === 1 ? noun : nouns}`;
}
