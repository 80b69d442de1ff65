#!/usr/bin/env bash
# setproctitle 1.3.8: a process whose first environment variable was set again keeps its old title.
#
# vLLM names its processes with it (VLLM::EngineCore, VLLM::Worker). setproctitle finds where the command line lies in
# memory by walking back from the first entry of the environment. Where a program sets that first variable again before
# it imports the package, the entry lies elsewhere. setproctitle() then does nothing, and nothing is raised.
# Wanted: the new title, or an error.
#
# Seen: first variable left alone -> title "renamed"; set again -> the title stays "python -c …".
#
# Exits 0 while that is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install setproctitle==1.3.8
code='import os, sys
os.environ[sys.argv[1]] = "a longer value than before"
import setproctitle
setproctitle.setproctitle("renamed")
print(open("/proc/self/cmdline").read().split("\0")[0])'
other=$(env -i FIRST=1 SECOND=2 "$folder/venv/bin/python" -c "$code" SECOND)
first=$(env -i FIRST=1 SECOND=2 "$folder/venv/bin/python" -c "$code" FIRST)
echo "second variable set again: $(basename "$other"); first one set again: $(basename "$first")"
test "$other" = renamed && test "$first" != renamed
