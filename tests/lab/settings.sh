# shellcheck shell=bash
# Settings of the lab and the few words that every part of it uses; sourced by tests/lab/lab and by tests.
# Whatever is written ": ${NAME:=value}" can be set from the environment.
# shellcheck disable=SC2034   # most of what is set here is used by the files that source this one

lab_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab_root=$(cd "$lab_source/../.." && pwd)

: "${LAB:=main}"                            # name of this lab: several may run beside each other from one checkout
: "${LAB_BUILD:=$lab_root/build/lab}"       # image, kernel, keys, saved machine states: made once, shared by all labs
: "${LAB_QEMU:=qemu-system-x86_64}"
: "${LAB_PRELOAD:=}"                         # a library for the hosts' QEMU (qemu_cr8_shim.c)
: "${LAB_MEMORY_MIB:=1024}"                 # of each host
: "${LAB_CPUS:=1}"                          # of each host
: "${LAB_CPU:=EPYC,-smap,-smep,-x2apic}"    # TCG emulates SVM; smap, smep and x2apic only cost time there
: "${LAB_DISK_MIB:=3072}"                   # root disk of each host, sparse
: "${LAB_SHARE_MIB:=768}"                   # the share, sparse; part of the hardware, so the same for every lab
: "${LAB_SHARE_EXTRA:=}"                    # more files or directories to put on the share, separated by spaces
: "${LAB_READY_SECONDS:=240}"               # a host that has not answered by then is a failure
: "${LAB_KINDS:=debug}"                     # which build of the programs goes to the share

lab_kernel=$LAB_BUILD/kernel                # vmlinuz, vmlinux, modules/, version
lab_image=$LAB_BUILD/image                  # root.img, initrd, remote-shell, key, key.pub, libraries, id
lab_states=$LAB_BUILD/states                # <what they fit>/hostN.state, hostN.qcow2 (host.sh)
lab_run=$LAB_BUILD/run-$LAB                 # one running lab: overlays, sockets, consoles, logs, hostN.pid
lab_guest=$lab_root/build/guest             # the stock guest that runs inside the hosts
lab_share_tree=$lab_run/share               # what goes to the hosts as /mnt/share

# The addresses exist inside the lab's own network namespace only, so every lab may use the same ones.
lab_net=10.77.0
lab_port=7                                  # of remote-shell
lab_hosts_max=16
# Named after the checkout and the lab: two checkouts, or two labs of one, never meet.
lab_namespace=drover-$(printf '%s' "$lab_root" | sha256sum | cut -c1-6)-$LAB

lab_die() { echo "lab: $*" >&2; exit 1; }
lab_now() { date +%s.%N; }
lab_since() { awk -v from="$1" -v to="$(lab_now)" 'BEGIN { printf "%.1f", to - from }'; }
lab_say() { echo "lab: [$(lab_since "$lab_started")s] $*"; }
lab_started=$(lab_now)

lab_address() { echo "$lab_net.$((10 + $1))"; }
lab_mac() { printf '52:54:00:77:00:%02x' "$1"; }
lab_pid() { cat "$lab_run/host$1.pid" 2>/dev/null; }

# The numbers of the hosts that this lab has, running or powered off.
lab_host_ids() {
    local file
    for file in "$lab_run"/host*.pid; do
        [ -e "$file" ] || continue
        file=${file##*/host}
        echo "${file%.pid}"
    done | sort -n
}

lab_check_host() { # ID
    [[ ${1:-} =~ ^[0-9]+$ ]] || lab_die "'${1:-}' is not the number of a host"
    [ -e "$lab_run/host$1.pid" ] || lab_die "there is no host $1 in lab '$LAB'; it has: $(lab_host_ids | xargs)"
}

# Is this pid still the QEMU of host ID of this lab? A number alone may have been given to another process.
lab_pid_is_ours() { # PID ID
    [ -n "$1" ] && { tr '\0' ' ' <"/proc/$1/cmdline" | grep -qF "$lab_run/host$2.qmp"; } 2>/dev/null
}

lab_in_namespace() { ip netns exec "$lab_namespace" "$@"; }

lab_ssh_options=(-i "$lab_image/key" -F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=no
    -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=5
    -o ControlMaster=auto -o "ControlPath=$lab_run/ssh-%h" -o ControlPersist=60
    -o Ciphers=aes128-gcm@openssh.com -o GSSAPIAuthentication=no)
lab_ssh() { # ID [COMMAND...]
    local id=$1
    shift
    lab_in_namespace ssh "${lab_ssh_options[@]}" "root@$(lab_address "$id")" "$@"
}

# Run a shell command on a host without the price of ssh (remote_shell.c); hands on standard input and the status.
lab_shell() { # ID COMMAND
    lab_in_namespace "$lab_image/remote-shell" "$(lab_address "$1")" "$lab_port" "$2"
}
# The same without standard input, for loops and background jobs.
lab_do() { lab_shell "$@" </dev/null; }

lab_qmp() { # ID COMMAND [JSON]...
    local id=$1
    shift
    /usr/bin/python3 "$lab_source/qmp.py" "$lab_run/host$id.qmp" "$@"
}

# QEMU clears one of its flags without its lock when a nested guest leaves, and so loses, now and then, the timer
# interrupt of the host, which then sleeps until the next interrupt of any kind: these packets are that. Run it in the
# background beside anything that runs guests for long, and end it by its process id.
lab_stay_awake() { # ID
    exec ip netns exec "$lab_namespace" /usr/bin/python3 -c '
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    s.sendto(b"", (sys.argv[1], 9))
    time.sleep(0.1)' "$(lab_address "$1")"
}
