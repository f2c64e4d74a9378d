#!/usr/bin/env bash
# Prepare a machine to build, test and run Vedette: system packages, uv, the Python environment, the C extension and
# the BPF object. Safe to run again; does nothing, quickly, when all is there.
#
# Expects: Debian 12 or later or Ubuntu 24.04 or later, with git, make and python3 >= 3.11 (nothing else).
# As root it installs what is missing with apt; as another user it prints the command and stops.
#
#   tools/bootstrap.sh            everything
#   tools/bootstrap.sh packages   only the system packages
#   tools/bootstrap.sh python     only uv and the Python environment
#   tools/bootstrap.sh bpf        only the BPF object (what is missing before it is made too)
#   tools/bootstrap.sh cluster    the system packages of the local Kubernetes (make cluster); not part of "everything"
#   tools/bootstrap.sh images     what builds container images: buildah, unless docker or podman is there
#
# Environment: UV (path of a uv to use), VEDETTE_NO_APT=1 (never install, only report).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UV_REQUIREMENT='uv>=0.9.5,<1'

if [[ -t 2 && -z ${NO_COLOR-} ]]; then bold=$'\e[1m' red=$'\e[31m' yellow=$'\e[33m' plain=$'\e[0m'; else bold='' red='' yellow='' plain=''; fi
say() { printf '%s\n' "${bold}bootstrap:${plain} $*" >&2; }
warn() { printf '%s\n' "${bold}bootstrap:${plain} ${yellow}$*${plain}" >&2; }
die() { printf '%s\n' "${bold}bootstrap:${plain} ${red}$*${plain}" >&2; exit 1; }

# Facts about the machine that no package can change. Each costs one line, none stops the build.
check_machine() {
  [[ $(uname -s) == Linux ]] || die "Vedette watches Linux; this is $(uname -s)."
  [[ -r /sys/kernel/btf/vmlinux ]] || warn "no /sys/kernel/btf/vmlinux: this kernel has no type information (CONFIG_DEBUG_INFO_BTF), so 'vedette run', 'make demo' and 'make live' cannot work here; the rest does."
  [[ $(id -u) -eq 0 ]] || warn "not root: 'vedette run', 'make demo' and 'make live' need root; the rest does not."
}

packages_wanted() {
  # Build: the C extension, the BPF object. clang's version decides the name of its sanitizer runtime (for the fuzz tests).
  echo gcc libc6-dev make git ca-certificates clang llvm libbpf-dev libbpf1 libelf-dev zlib1g-dev linux-libc-dev
  # The Python environment, when the python3 in use is the distribution's.
  [[ $(command -v python3) != /usr/bin/python3 ]] || echo python3-dev python3-venv
  # Tests and demo: containers, network namespaces, a real PostgreSQL.
  echo runc mmdebstrap iproute2 util-linux libcap2-bin procps openssl perl strace gdb busybox-static postgresql
}

# What the local Kubernetes takes from the distribution; the rest of it is compiled (tools/localcluster).
cluster_packages_wanted() {
  echo gcc libc6-dev containerd containernetworking-plugins runc iptables conntrack iproute2 util-linux
}

installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# The distributions renamed some packages between releases; any of the alternatives will do.
satisfied() {
  case $1 in
    libbpf1) installed libbpf1 || installed libbpf1t64 ;;
    runc) command -v runc >/dev/null ;;
    postgresql) compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null ;;
    clang) command -v clang >/dev/null ;;
    containerd) command -v containerd >/dev/null ;;
    *) installed "$1" ;;
  esac
}

sanitizer_package() {
  local major
  major=$(clang -dumpversion 2>/dev/null | cut -d. -f1) || return 0
  [[ -n $major ]] && echo "libclang-rt-${major}-dev"
}

apt_install() {
  local attempt
  export DEBIAN_FRONTEND=noninteractive
  mkdir -p build
  for attempt in 1 2 3 4; do
    if { [[ $attempt -eq 1 && -n $(compgen -G '/var/lib/apt/lists/*Packages*' || true) ]] || apt-get -qq update; } &&
      apt-get -qq -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 --no-install-recommends install "$@" >build/apt.log 2>&1; then
      return 0
    fi
    tail -n 15 build/apt.log >&2
    warn "apt-get could not install ($*), attempt $attempt of 4"
    sleep $((attempt * 5))
  done
  return 1
}

ensure() { # ensure PACKAGE...: installs those that are missing, or says how to
  local missing=() package
  for package in "$@"; do satisfied "$package" || missing+=("$package"); done
  ((${#missing[@]})) || return 0
  if [[ $(id -u) -ne 0 || -n ${VEDETTE_NO_APT-} ]]; then
    die "missing: ${missing[*]}
  Install with: sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}"
  fi
  say "installing ${missing[*]}"
  apt_install "${missing[@]}" || die "apt-get failed. Missing: ${missing[*]}"
}

ensure_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    local tool missing=()
    for tool in gcc clang llvm-strip make runc mmdebstrap ip busybox; do command -v "$tool" >/dev/null || missing+=("$tool"); done
    ((${#missing[@]} == 0)) || warn "not Debian or Ubuntu; these commands are missing and are yours to install: ${missing[*]} (and the headers of libbpf, libelf and Python)"
    return 0
  fi
  # shellcheck disable=SC2046
  ensure $(packages_wanted)
  # shellcheck disable=SC2046
  ensure $(sanitizer_package)
}

ensure_image_builder() {
  # docker is often there without a daemon that would answer.
  if command -v buildah >/dev/null || command -v podman >/dev/null || docker info >/dev/null 2>&1; then return 0; fi
  command -v apt-get >/dev/null || die "none of docker, podman and buildah is there: install one of them."
  ensure buildah
}

ensure_cluster_packages() {
  # On other distributions the program itself says what it misses.
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || return 0
  # shellcheck disable=SC2046
  ensure $(cluster_packages_wanted)
}

python_good() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_uv() {
  if [[ -n ${UV-} ]]; then return; fi
  if [[ -x build/uv/bin/uv ]]; then UV=$PWD/build/uv/bin/uv; return; fi
  if UV=$(command -v uv) && "$UV" --version >/dev/null 2>&1; then return; fi
  say "installing uv into build/uv"
  mkdir -p build
  rm -rf build/uv
  python3 -m venv build/uv 2>/dev/null || die "python3 -m venv does not work here. Install python3-venv, or put uv on the PATH (https://docs.astral.sh/uv/)."
  local attempt
  for attempt in 1 2 3 4; do
    if build/uv/bin/python -m pip install --quiet --disable-pip-version-check "$UV_REQUIREMENT"; then
      UV=$PWD/build/uv/bin/uv
      return
    fi
    warn "pip could not install uv, attempt $attempt of 4"
    sleep $((attempt * 5))
  done
  die "uv could not be installed. Put uv on the PATH (https://docs.astral.sh/uv/) and run make again."
}

sync_python() {
  find_uv
  local python=()
  if python_good python3; then
    python=(--python "$(command -v python3)")
    # An environment that exists and works keeps its interpreter.
    [[ -x .venv/bin/python ]] && python_good .venv/bin/python && python=()
  else
    warn "python3 is $(python3 --version 2>&1 || echo missing), Vedette needs 3.11 or later: uv tries to download one, which a network without access to GitHub does not allow."
  fi
  local attempt
  for attempt in 1 2 3 4; do
    if "$UV" sync --frozen --quiet "${python[@]}"; then break; fi
    [[ $attempt -lt 4 ]] || die "uv sync failed; the lines above say why."
    warn "uv sync failed, attempt $attempt of 4"
    sleep $((attempt * 5))
  done
  # uv builds an editable package once; the C extension is built again when its source is newer.
  local library
  library=$(compgen -G 'events/vedette_events/_native*.so' | head -n1 || true)
  if [[ -z $library || -n $(find events/vedette_events -maxdepth 1 -name '*.[ch]' -newer "$library") ]]; then
    say "building the C extension"
    "$UV" sync --frozen --quiet "${python[@]}" --reinstall-package vedette-events || die "the C extension did not build; the lines above say why."
  fi
}

build_bpf() {
  .venv/bin/python -m vedette_agent.bpf_build >/dev/null || die "the BPF object did not build; the lines above say why."
}

case ${1-all} in
  all) check_machine; ensure_packages; sync_python; build_bpf ;;
  packages) check_machine; ensure_packages ;;
  python) sync_python ;;
  bpf) sync_python; build_bpf ;;
  images) ensure_image_builder ;;
  cluster) ensure_cluster_packages ;;
  *) die "unknown part: $1 (all, packages, python, bpf, images, cluster)" ;;
esac
