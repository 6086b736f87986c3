# shellcheck shell=bash
# What a lab script of checks is made of: counting, one lab host, and an end that leaves nothing behind. Sourced after
# settings.sh; the script calls checks_begin, then checks, then finish. Last line: N passed, N failed, N skipped.
# shellcheck disable=SC2034,SC2154   # shared with settings.sh and the scripts

passed=0 failed=0 skipped=0 awake=

pass() { passed=$((passed + 1)); echo "ok   $(lab_since "$lab_started")s $*"; }
fail() { failed=$((failed + 1)); echo "FAIL $(lab_since "$lab_started")s $*"; }
skip() { skipped=$((skipped + 1)); echo "SKIPPED $*"; }
check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" >/dev/null 2>&1; then pass "$name"; else fail "$name"; fi
}

# A script may have on_failure, which prints what explains one, while the host is still there.
finish() {
    trap - EXIT INT TERM HUP
    [ -z "$awake" ] || kill "$awake" 2>/dev/null
    if [ $failed -gt 0 ]; then
        [ "$(type -t on_failure)" != function ] || on_failure
        "$lab_source/lab" down keep
    else
        "$lab_source/lab" down
    fi
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
    exit
}

on_host() { timeout "${host_limit_s:-120}" "$lab_source/lab" run 1 "$1" </dev/null; }

# A condition on the host, asked until it holds or the limit has passed. One connection for the whole wait.
host_waits() { # SHELL-CONDITION SECONDS
    timeout $(($2 + 20)) "$lab_source/lab" run 1 "end=\$((\$(date +%s) + $2))
        until $1; do
            [ \$(date +%s) -lt \$end ] || exit 1
            sleep 0.5
        done" </dev/null
}

# Until TEXT is in a file of the host, which may come later; nothing is asked meanwhile: where the processor is emulated a
# loop of a few commands takes a third of it.
host_shows() { # FILE TEXT SECONDS
    timeout $(($3 + 20)) "$lab_source/lab" run 1 "exec timeout $3 bash -c 'grep -aqFm 1 -- \"$2\" <(tail -n +1 -F $1 2>/dev/null)'" </dev/null
}

checks_begin() {
    if [ "$(id -u)" != 0 ]; then
        skip "the lab needs root"
        echo "$passed passed, $failed failed, $skipped skipped"
        exit 0
    fi
    trap finish EXIT
    trap 'fail "interrupted"; finish' INT TERM HUP
}

# One host, awake, with what LAB_SHARE_EXTRA names on its share.
one_host_up() {
    export LAB_SHARE_MIB=1536 LAB_SHARE_EXTRA
    "$lab_source/lab" down
    "$lab_source/lab" up 1 || { fail "one lab host is up"; finish; }
    lab_stay_awake 1 &
    awake=$!
    pass "one lab host is up"
}
