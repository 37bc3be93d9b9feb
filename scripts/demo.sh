#!/usr/bin/env bash
# Usage: make demo   (or, with ragtune on the PATH: bash scripts/demo.sh)
# The whole of ragtune on the Harbourline corpus. Interrupt it and run it again: finished stages are reused.
set -euo pipefail
cd "$(dirname "$0")/.."
export RAGTUNE_CONFIG=corpora/harbourline
SECONDS=0
step() { printf '\n\033[1m[%s] %s\033[0m\n' "$(date -u -d "@$SECONDS" +%M:%S)" "$*" >&2; }
[ -t 2 ] && [ -z "${NO_COLOR:-}" ] || step() { printf '\n[%s] %s\n' "$(date -u -d "@$SECONDS" +%M:%S)" "$*" >&2; }

step "1/7 Reading and indexing 70 documents"
ragtune index -c "$RAGTUNE_CONFIG"
step "2/7 A first answer, from the untuned model with retrieved passages"
ragtune ask -c "$RAGTUNE_CONFIG" --arm retrieve "What does a bicycle cost on R3?"
step "3/7 Checking the tasks"
ragtune check -c "$RAGTUNE_CONFIG"
step "4/7 Tuning without passages (the arm 'tune')"
ragtune tune -c "$RAGTUNE_CONFIG" --arm tune --epochs 2 --max-rows-per-task 240 --resume \
  --task facts --task routing --task record --task sender --task language
step "5/7 Tuning with passages (the arm 'raft'), on the task whose answers stand in one document"
ragtune tune -c "$RAGTUNE_CONFIG" --arm raft --task facts --epochs 2 --resume
step "6/7 Every arm answers the same questions, round by round"
ragtune evaluate -c "$RAGTUNE_CONFIG" --questions 56 \
  --task facts --task routing --task record --task sender --task language
step "7/7 The winner answers, then the report"
ragtune ask -c "$RAGTUNE_CONFIG" "What does a bicycle cost on R3?"
ragtune report -c "$RAGTUNE_CONFIG"
