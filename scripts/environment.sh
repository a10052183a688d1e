# Sourced by scripts/demo, scripts/test and .ci/run: a virtual environment with prefetchd in it.
#
#     prepare_environment LEVEL     LEVEL is demo (a plain install), test or dev (editable, with that extra), ci (dev, and
#                                   the frameworks that the tests run with), or lowest (the lowest versions that
#                                   pyproject.toml allows of what is always needed, and of test and parquet)
#
# Sets `python`. The environment is .venv in the checkout, or PREFETCHD_VENV. It is made if it is missing or broken, and
# its stamp tells what was installed from what, so that a second run installs nothing. PYTHON chooses the interpreter.

say() { echo "$*" >&2; }

# Whether "$@" runs a Python that is recent enough and has the modules given as $1 (a list with commas).
_suits() {
    local modules=$1
    shift
    "$@" -c "import sys, $modules; sys.exit(sys.version_info < (3, 11))" </dev/null >/dev/null 2>&1
}

_find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if _suits venv,ensurepip "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    say "cannot make a virtual environment: found no Python 3.11 or newer with the modules venv and ensurepip;" \
        "install one (on Debian: apt install python3 python3-venv), or name it in PYTHON"
    return 1
}

_stamp_now() {
    local level=$1
    {
        pwd
        "$python" -c 'import sys; print(sys.version)'
        cat pyproject.toml
        if [[ $level == demo ]]; then # a plain install has a copy of the package
            find prefetchd -name '*.py' -print0 | sort -z | xargs -0 cat
        fi
    } | sha256sum | cut -d ' ' -f 1
}

# Whether the stamp says that what `level` needs is installed, and prefetchd is there to import.
_is_installed() {
    local level=$1 has digest from
    [[ -f $stamp ]] || return 1
    read -r has digest <"$stamp" || return 1
    case $level:$has in
        demo:* | test:test | test:dev | test:ci | test:lowest | dev:dev | dev:ci | ci:ci | lowest:lowest) ;;
        *) return 1 ;;
    esac
    [[ $digest == "$(_stamp_now "$has")" ]] || return 1
    from=$(cd / && "$python" -P -c 'import os, prefetchd; print(os.path.dirname(prefetchd.__file__))' 2>/dev/null) ||
        return 1
    [[ $has == demo || $from -ef prefetchd ]] # another checkout's editable install is not ours
}

prepare_environment() {
    local level=$1 venv=${PREFETCHD_VENV:-.venv} stamp found
    python=$venv/bin/python
    if [[ $python != /* ]]; then python=$PWD/$python; fi
    stamp=$venv/prefetchd-installed
    if ! _suits venv,pip "$python"; then
        found=$(_find_python)
        if [[ -e $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
            say "cannot use $venv: it is not a virtual environment; move it away, or set PREFETCHD_VENV"
            return 1
        fi
        say "making a virtual environment in $venv ..."
        "$found" -m venv --clear "$venv" </dev/null
    fi
    if _is_installed "$level"; then return; fi
    rm -f "$stamp"
    local -a what=(.)
    case $level in
        demo) ;;
        ci) what=(--editable ".[dev,frameworks]") ;;
        lowest)
            mapfile -t what < <("$python" scripts/lowest.py test parquet)
            what+=(--editable ".[test,parquet]")
            ;;
        *) what=(--editable ".[$level]") ;;
    esac
    say "installing prefetchd and what it needs ..."
    "$python" -m pip install -qq --disable-pip-version-check "${what[@]}" </dev/null >&2
    echo "$level $(_stamp_now "$level")" >"$stamp"
}
