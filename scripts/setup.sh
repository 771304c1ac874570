#!/bin/sh
# Makes $VENV (default .venv) when it is missing or stale, with the jax that suits the machine; prints the devices.
# Stale: pyproject.toml, the kind of accelerator, or the PYTHON, JAX (a version) or EXTRAS asked for changed since.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# an interrupted `python -m venv` leaves an interpreter without pip
complete() { new_enough "$1" && "$1" -m pip --version >/dev/null 2>&1; }

find_python() {
  if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.12 python3.11 python3 python; fi
  for candidate in "$@"; do
    if new_enough "$candidate"; then echo "$candidate"; return; fi
  done
  echo "error: no Python 3.11 or newer as '${PYTHON:-python3}'; name one with make PYTHON=/path/to/python" >&2
  exit 2
}

# cpu, tpu, cuda (driver 525 or newer) or cuda13 (driver 580 or newer)
accelerator() {
  if [ "${JAX_PLATFORMS:-}" = cpu ]; then echo cpu; return; fi
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d. -f1) || driver=""
  case $driver in
    '' | *[!0-9]*) ;;
    *) if [ "$driver" -ge 580 ]; then echo cuda13; else echo cuda; fi; return ;;
  esac
  if ls /dev/accel* >/dev/null 2>&1 || [ -n "${TPU_NAME:-}${TPU_WORKER_ID:-}" ]; then echo tpu; else echo cpu; fi
}

kind=$(accelerator)
if [ -n "${PYTHON:-}" ] || ! complete "$venv/bin/python"; then python=$(find_python); else python=$venv/bin/python; fi
version=$("$python" -c 'import platform; print(platform.python_version())')
key="$kind $version ${JAX:-newest} ${EXTRAS:-} $(cksum <pyproject.toml)"

if [ "$(cat "$venv/made-for" 2>/dev/null)" != "$key" ]; then
  made_with=none
  if complete "$venv/bin/python"; then
    made_with=$("$venv/bin/python" -c 'import platform; print(platform.python_version())')
  fi
  if [ "$made_with" != "$version" ]; then
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
      echo "error: $venv is no virtual environment; move it away or name another with make VENV=DIR" >&2
      exit 2
    fi
    rm -rf "$venv"
    "$python" -m venv "$venv" >/dev/null || {
      rm -rf "$venv"
      echo "error: $python cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2
      exit 2
    }
  fi
  extras=digits,facts,pictures,logging,test,dev${EXTRAS:+,$EXTRAS}
  [ "$kind" = cpu ] || extras=$extras,$kind
  echo "setting up $venv: Python $version, jax for $kind (once; a minute or so)"
  rm -f "$venv/made-for"
  set -- -e ".[$extras]" ${JAX:+"jax==$JAX"}
  if [ -n "${JAX:-}" ]; then newest=; else newest=yes; fi  # the last JAX asked for may still be installed
  if ! { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv &&
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" ${newest:+-P jax -P jaxlib} "$@"; }; then
    echo "uv did not manage; trying pip, which is slower"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${newest:+--upgrade jax} "$@"
  fi
  echo "$key" >"$venv/made-for"
fi
"$venv/bin/python" -c 'import jax; print(f"jax {jax.__version__} on", ", ".join(map(str, jax.devices())))'
