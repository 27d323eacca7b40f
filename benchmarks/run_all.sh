#!/bin/sh
# Run the benchmarks of speed and memory in turn, and store what each prints in FOLDER/NAME.txt:
#     run_all.sh [FOLDER] [--quick]
# PYTHON is the interpreter that has kshot, its plugins and benchmarks/requirements.txt. The machine should be idle.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$here/results
case "${1:-}" in
    "" | --*) ;;
    *) folder=$1; shift ;;
esac
mkdir -p "$folder"
status=0
for name in startup loading sampling bare_loop metric_steps evaluation memory ntm_step protonet_step maml_step inner_loop navigation2d gymnasium_families adaptation l2l_unroll meta_batches distributed; do
    echo "== $name"
    if "${PYTHON:-python}" "$here/$name.py" "$@" >"$folder/$name.txt.part"; then
        mv "$folder/$name.txt.part" "$folder/$name.txt"
        cat "$folder/$name.txt"
    else
        status=1
        echo "$name failed" >&2
    fi
done
exit $status
