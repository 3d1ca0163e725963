#!/usr/bin/env bash
# `make demo`: a lab of three hosts, an image that only one of them is given, a service on all of them.
# demo.sh PATH-OF-SKEP
set -euo pipefail
skep=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
lab=demo

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "${*/#$skep/skep}"; "$@"; }
on() { local host=$1; shift; run "$skep" lab --name "$lab" exec "$host" -- "$@"; }

if [ "$(id -u)" != 0 ]; then
    echo "the demo makes namespaces and containers: run it as root" >&2
    exit 1
fi
trap 'code=$?; [ $code = 0 ] || { echo "the demo failed; taking the lab down" >&2; "$skep" lab --name "$lab" down >/dev/null 2>&1 || true; }' EXIT
"$skep" lab --name "$lab" down >/dev/null 2>&1 || true

say "Three hosts in namespaces of this machine: one manager, two workers"
run "$skep" lab --name "$lab" up --nodes 3 --managers 1
on 1 skep node ls

say "An image that only host1 is given: no registry anywhere"
on 1 skep image import --change 'ENTRYPOINT ["/whoami"]' --change 'EXPOSE 8000' "$root/target/whoami.tar" whoami:1

say "An encrypted network over all hosts, and a service of three replicas on it, published on port 80 of every host"
on 1 skep network create front
on 1 skep service create --name whoami --replicas 3 --network front --publish 80:8000 \
    --env 'TASK={{.Task.Name}}' --env 'NODE={{.Node.Hostname}}' whoami:1
on 1 skep service ps whoami

say "The page, asked for on host1 at the address of each host"
for host in 1 2 3; do
    on 1 curl -sS --max-time 5 "http://host$host/"
done

say "Six replicas"
on 1 skep service scale whoami=6
on 1 skep service ls

cat <<TXT

The lab is still up. Try:
  $1 lab --name $lab exec 1 -- skep service logs whoami
  $1 lab --name $lab exec 1 -- skep service scale whoami=30
  $1 lab --name $lab power-off 3     # its tasks move
  $1 lab --name $lab exec 1 -- skep service ps whoami
Take it down:
  $1 lab --name $lab down
TXT
