#!/bin/bash
# The Dockerfile's steps without Docker, in a fresh folder: install what it installs, start what it starts, ask its probe.
# deploy/rehearse.sh [BASE [options of uv pip]], for example: deploy/rehearse.sh smollm2
set -euo pipefail
root=$(mktemp -d); source=$(cd "$(dirname "$0")/.." && pwd)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$root"' EXIT
python3 -m venv "$root/opt"
mkdir -p "$root/src" "$root/adapters"
# the Dockerfile's own COPY lines: what it forgets is missing here too
while read -r _ parts; do
    read -ra names <<< "$parts"
    last=$((${#names[@]} - 1)); to=${names[$last]}
    for one in "${names[@]:0:$last}"; do cp -r "$source/$one" "$root/src/${to#./}"; done
done < <(grep '^COPY ' "$source/deploy/Dockerfile")
# uv as there, but torch from wherever this machine has its packages
"$root/opt/bin/pip" install --quiet --no-cache-dir uv
(cd "$root/src" && "$root/opt/bin/uv" pip install --quiet --no-cache --python "$root/opt/bin/python" -c constraints.txt "${@:2}" ".[serve]")
cd "$root"
"$root/opt/bin/finetune" serve --host 127.0.0.1 --port 18000 --adapters_dir "$root/adapters" --rescan_seconds 10 \
    --base "${1:-HuggingFaceTB/SmolLM2-135M-Instruct}" &
server=$!
for _ in $(seq 120); do
    if "$root/opt/bin/python" -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:18000/ready', timeout=4).read().decode())"; then
        kill -TERM "$server"; wait "$server" || true; echo "it installs, starts, is ready and stops"; exit 0
    fi 2>/dev/null
    kill -0 "$server" || { echo "the server ended"; exit 1; }
    sleep 2
done
echo "it was not ready within four minutes"; exit 1
