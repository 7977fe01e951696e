#!/usr/bin/env bash
# Call a command again while that can help: retry.sh COMMAND [ARGUMENT...]
# It can after 69, 70, 74, 75 and a death by signal; not after 65 (data), 78 (recipe) or any other.
set -euo pipefail
tries=${RETRIES:-20} pause=${RETRY_PAUSE_S:-30}

for ((try = 1; ; try++)); do
  code=0
  "$@" || code=$?
  case $code in
    69 | 70 | 74 | 75 | 12[89] | 1[3-9][0-9] | 2[0-9][0-9]) ;;
    *) exit "$code" ;;
  esac
  ((try < tries)) || break
  echo "retry.sh: exit code $code, again in $pause s ($try of $tries)" >&2
  sleep "$pause"
done
echo "retry.sh: exit code $code after $tries tries" >&2
exit "$code"
