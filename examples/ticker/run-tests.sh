#!/bin/sh
# Runs in each guest: does the program run there, and say what it should?
set -eu
. /etc/os-release
echo "$PRETTY_NAME, kernel $(uname -r), $(ldd --version | head -n 1)"

./ticker > ticks.log
for tick in 1 2 3; do
    grep -qx "tick $tick" ticks.log || { echo "tick $tick is missing"; exit 1; }
done
echo "all ticks are there"
