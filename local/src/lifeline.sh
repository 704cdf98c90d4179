# Keeps one server, and the directory that it lives in, no longer than its parent lives.
#
# Standard input is the lifeline: a pipe whose other end only the parent holds. The kernel
# closes it however the parent ends (exit, panic, Ctrl-C, kill -9), and then this script
# stops the server and removes the directory.
#
# $1  log file of the server
# $2  directory to remove at the end; empty: remove nothing
#
# Orders, one a line, on standard input:
#   run SIGNALS TENTHS COMMAND   start COMMAND (quoted for a shell). When it is to stop, send
#                                SIGNALS ("INT,QUIT") one after another, TENTHS of a second
#                                apart, and KILL at last.
#   stop [SIGNALS]               stop the server, with other signals if given, and stay
# Reports, one a line, on standard output: "pid N" and "exited STATUS".

log=$1
directory=$2
server=
exec 3<&0 </dev/null

# The parent may be dead already: then nobody reads, and that is no error.
say() { ( trap '' PIPE; echo "$1" ) 2>/dev/null; }

# Somebody ends this script itself: the server must not outlive it.
trap 'test -n "$server" && kill -s "${signals%%,*}" "$server"' HUP INT TERM

while read -r order signals tenths command <&3; do
    test "$order" = run || continue
    ( eval "exec $command" ) >>"$log" 2>&1 3<&- &
    server=$!
    say "pid $server"

    # Waits for an order or for the end of the lifeline, while the main script waits for the server.
    (
        read -r order given <&3 && test -n "$given" && signals=$given
        IFS=,
        for signal in $signals KILL; do
            kill -s "$signal" "$server"
            left=$tenths
            while test "$left" -gt 0; do
                sleep 0.1
                left=$((left - 1))
            done
        done
    ) >/dev/null 2>&1 &
    watcher=$!

    while :; do
        wait "$server"
        status=$?
        # Above 128: the server died of a signal, or a trap interrupted the wait.
        test "$status" -gt 128 && kill -0 "$server" 2>/dev/null || break
    done
    server=
    kill "$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null
    say "exited $status"
done

if test -n "$directory"; then
    cd /
    # A server that was killed may leave children that write for a moment more.
    left=50
    until rm -rf -- "$directory" 2>/dev/null || test "$left" -eq 0; do
        sleep 0.1
        left=$((left - 1))
    done
fi
