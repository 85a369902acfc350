#!/usr/bin/env bash
# The whole recipe as a script for CI: each command prints the ref of what it made, and nothing else, on stdout.
# Needs no network, no key and no GPU. With a real teacher, name it instead of `sandbox` and give prompts and a pool.
set -euo pipefail

teacher=${TEACHER:-sandbox}
rows=${ROWS:-400}

sft_data=$(zephyrctl gen-sft --teacher "$teacher" --rows "$rows")
zephyrctl sft --init sandbox --data "$sft_data" --epochs 1
feedback=$(zephyrctl gen-prefs --teacher "$teacher" --rows "$rows")
prefs=$(zephyrctl binarize --feedback "$feedback")
zephyrctl dpo --init ckpt/sft-e1 --epochs 3
evaluated=$(zephyrctl eval --model ckpt/dpo-e3 --rows 40)

zephyrctl artifacts verify "$sft_data" "$feedback" "$prefs" "$evaluated"
zephyrctl artifacts lineage "$evaluated"
