# shellcheck shell=bash
# What the server recipes share. Sourced by them, not run.
# A recipe: install | start DIR [options] | stop DIR. `start` prints KEY=VALUE lines on stdout and nothing else; it
# never installs. Binaries lie in $SALLYPORT_SERVERS_CACHE (default ~/.cache/sallyport-servers) or on PATH.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${SALLYPORT_SERVERS_CACHE:-$HOME/.cache/sallyport-servers}
BIN=$CACHE/bin
NAME=$(basename "$0")

say() { echo "$NAME: $*" >&2; }
die() {
  say "$*"
  exit 1
}

usage() { die "usage: $NAME $*"; }

# locked COMMAND...: one install of a recipe at a time (two runs may both ask for it)
locked() {
  mkdir -p "$BIN"
  (
    flock 9
    "$@"
  ) 9>"$CACHE/lock-$NAME" >&2
}

# found BINARY: its path, from the cache or PATH; fails when there is none
found() {
  if [ -x "$BIN/$1" ]; then echo "$BIN/$1"; else command -v "$1"; fi
}

# require BINARY: like found, but ends with the command that installs it
require() { found "$1" || die "$1 is not installed: run test/support/servers/$NAME install"; }

# apt_install PACKAGE...: what is missing, with no service started by it
apt_install() {
  local package missing=()
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -mtime -1 2>/dev/null | grep -q . || apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
}

# free_port: a TCP port of 127.0.0.1 that nobody uses, below the ephemeral range
free_port() {
  local port
  while :; do
    port=$((20000 + (RANDOM << 15 | RANDOM) % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# launch DIR COMMAND...: a daemon with its own session, output in DIR/log, pid in DIR/pid. With SERVER_OWNER=PID it is
# killed when that process is gone, so that a test run which was itself killed leaves nothing behind.
launch() {
  local dir=$1 pid
  shift
  setsid "$@" >>"$dir/log" 2>&1 </dev/null &
  pid=$!
  echo $pid >"$dir/pid"
  if [ -n "${SERVER_OWNER:-}" ]; then
    (while running "$SERVER_OWNER" && running $pid; do sleep 1; done; kill -KILL $pid) >/dev/null 2>&1 </dev/null &
  fi
}

# running PID: exists and is no zombie (pid 1 of a container may be slow to reap)
running() { grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$1/status" 2>/dev/null; }

alive() { [ -s "$1/pid" ] && running "$(cat "$1/pid")"; }

# wait_for DIR SECONDS COMMAND...: until the command succeeds; fails at once when the daemon of DIR is dead
wait_for() {
  local dir=$1 end=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ! alive "$dir" || [ "$SECONDS" -ge "$end" ]; then
      tail -n 20 "$dir/log" >&2
      die "does not answer: $*"
    fi
    sleep 0.1
  done
}

# halt DIR: stops the daemon of DIR, by force after 10 s; fine when none runs
halt() {
  local pid try
  [ -s "$1/pid" ] || return 0
  pid=$(cat "$1/pid")
  kill -TERM "$pid" 2>/dev/null || true
  for ((try = 0; try < 100; try++)); do
    running "$pid" || break
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
  rm -f "$1/pid"
}

# make_ca DIR: DIR/ca.pem, and DIR/cert.pem + DIR/key.pem for 127.0.0.1, ::1 and localhost. The subject is numbered: two
# authorities of one name confuse OpenSSL.
make_ca() {
  local dir=$1
  [ ! -e "$dir/cert.pem" ] || return 0
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=sallyport test CA $RANDOM$RANDOM" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$dir/ca-key.pem" -out "$dir/ca.pem" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost \
    -keyout "$dir/key.pem" -out "$dir/csr.pem" 2>/dev/null
  openssl x509 -req -in "$dir/csr.pem" -CA "$dir/ca.pem" -CAkey "$dir/ca-key.pem" -CAcreateserial -days 30 \
    -extfile <(printf 'subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost\nextendedKeyUsage=serverAuth\n') \
    -out "$dir/cert.pem" 2>/dev/null
}

# make_client DIR: DIR/client-ca.pem, and DIR/client.pem + DIR/client-key.pem, a client's certificate of it
make_client() {
  local dir=$1
  [ ! -e "$dir/client.pem" ] || return 0
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=sallyport test client CA $RANDOM$RANDOM" \
    -addext basicConstraints=critical,CA:TRUE -keyout "$dir/client-ca-key.pem" -out "$dir/client-ca.pem" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=agent \
    -keyout "$dir/client-key.pem" -out "$dir/client-csr.pem" 2>/dev/null
  openssl x509 -req -in "$dir/client-csr.pem" -CA "$dir/client-ca.pem" -CAkey "$dir/client-ca-key.pem" -CAcreateserial \
    -days 30 -extfile <(printf 'extendedKeyUsage=clientAuth\n') -out "$dir/client.pem" 2>/dev/null
}

# main "$@": the subcommands; a recipe defines install, start and stop
main() {
  local verb=${1:-} dir
  shift || true
  case $verb in
    install) locked install ;;
    start)
      [ $# -ge 1 ] || usage "start DIR [options]"
      mkdir -p "$1"
      dir=$(cd "$1" && pwd)
      shift
      if alive "$dir"; then die "runs already in $dir"; fi
      # shellcheck disable=SC2064 # a start that fails leaves nothing running
      trap "[ \$? -eq 0 ] || stop '$dir'" EXIT
      start "$dir" "$@"
      ;;
    stop)
      [ $# -ge 1 ] || usage "stop DIR"
      [ -d "$1" ] || return 0
      stop "$(cd "$1" && pwd)"
      ;;
    *) usage "install | start DIR [options] | stop DIR" ;;
  esac
}
