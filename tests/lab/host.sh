# shellcheck shell=bash
# One lab host: a QEMU process with emulated SVM, started cold or from its saved machine state. Sourced.
#
# A saved state is the host's memory and devices right after boot, with what every test will need in the page cache.
# It fits one QEMU version, one image and one set of hardware only; lab_state_id names all of that, and states of
# another id lie in another directory: a lab that runs stands on its own.

# The share: a read-only disk (vdb) that every host sees. Its size is fixed, so that it can be given new content
# under a saved state, or under running hosts.
lab_share_write() {
    local path image=$lab_run/share.img kind
    rm -rf "$lab_share_tree"
    mkdir -p "$lab_share_tree/bin"
    for kind in $LAB_KINDS; do
        for path in "$lab_root/build/$kind"/bin/*; do [ ! -f "$path" ] || cp "$path" "$lab_share_tree/bin/"; done
    done
    [ ! -d "$lab_guest" ] || cp -a "$lab_guest" "$lab_share_tree/guest"
    for path in $LAB_SHARE_EXTRA; do cp -a "$path" "$lab_share_tree/"; done
    truncate -s 0 "$image"
    truncate -s "${LAB_SHARE_MIB}M" "$image"
    mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1,root_owner=0:0 -m 0 -i 65536 \
        -d "$lab_share_tree" "$image" "${LAB_SHARE_MIB}M"
    rm -rf "$lab_share_tree"
}

# New content for running hosts; a program that runs from the share keeps it mounted, which is said.
lab_share_refresh() {
    local id
    for id in $(lab_running_ids); do
        lab_do "$id" 'umount /mnt/share 2>/dev/null; ! mountpoint -q /mnt/share && blockdev --flushbufs /dev/vdb' ||
            lab_die "host $id still uses /mnt/share: $(lab_do "$id" 'ls -l /proc/*/exe 2>/dev/null | grep mnt/share')"
    done
    lab_share_write
    for id in $(lab_running_ids); do lab_do "$id" 'mount -o ro,noatime /dev/vdb /mnt/share'; done
}

lab_host_disk() { # ID cold|saved: a fresh overlay on the image, or on the disk that belongs to the saved state
    local base=$lab_image/root.img format=raw
    [ "$2" = cold ] || { base=$(lab_state_directory)/host$1.qcow2 format=qcow2; }
    rm -f "$lab_run/host$1.qcow2"
    qemu-img create -q -f qcow2 -b "$base" -F "$format" "$lab_run/host$1.qcow2"
}

# tsc=reliable: under load the kernel's watchdog would drop the TSC for the HPET, where each clock read is an exit.
lab_host_cmdline() { # ID
    echo "console=ttyS0 quiet loglevel=4 mitigations=off nokaslr net.ifnames=0 tsc=reliable init_on_alloc=0" \
        "apparmor=0 audit=0 lsm= randomize_kstack_offset=off hardened_usercopy=off rcupdate.rcu_expedited=1" \
        "systemd.show_status=0 systemd.machine_id=$(printf '%032x' $((0xab000 + $1))) lab.id=$1 lab.net=$lab_net"
}

# The hardware, the same for a cold boot and for a restore; into the array lab_hardware.
lab_host_hardware() { # ID
    lab_hardware=(-machine q35 -accel "tcg,thread=multi" -cpu "$LAB_CPU" -smp "$LAB_CPUS" -m "$LAB_MEMORY_MIB"
        -nodefaults -no-user-config -display none
        -drive "if=none,id=root,file=$lab_run/host$1.qcow2,format=qcow2,cache=writeback,discard=unmap"
        -device "virtio-blk-pci,drive=root"
        -drive "if=none,id=share,file=$lab_run/share.img,format=raw,readonly=on,file.locking=off"
        -device "virtio-blk-pci,drive=share"
        -netdev "tap,id=n0,ifname=tap$1,script=no,downscript=no"
        -device "virtio-net-pci,netdev=n0,id=nic0,mac=$(lab_mac "$1"),romfile="
        -serial "file:$lab_run/host$1.console"
        -qmp "unix:$lab_run/host$1.qmp,server=on,wait=off")
}

lab_state_id() {
    echo "$($LAB_QEMU --version | head -1); image $(cat "$lab_image/id") in $LAB_BUILD; $LAB_CPU x $LAB_CPUS," \
        "$LAB_MEMORY_MIB MiB, share $LAB_SHARE_MIB MiB; $(lab_host_cmdline 0 | sha256sum | cut -c1-8)"
}
lab_state_directory() { echo "$lab_states/$(lab_state_id | sha256sum | cut -c1-12)"; }

lab_host_start() { # ID cold|saved: QEMU in the namespace, detached
    local id=$1 incoming=()
    [ "$2" != saved ] || incoming=(-S -incoming defer)
    lab_host_hardware "$id"
    # its descriptors 3 and up are closed: the lock of this script must not live on in it
    setsid ip netns exec "$lab_namespace" env ${LAB_PRELOAD:+"LD_PRELOAD=$LAB_PRELOAD"} "$LAB_QEMU" -name "$lab_namespace-host$id" "${lab_hardware[@]}" "${incoming[@]}" \
        -kernel "$lab_kernel/vmlinux" -initrd "$lab_image/initrd" -append "$(lab_host_cmdline "$id")" \
        </dev/null >"$lab_run/host$id.log" 2>&1 9>&- &
    echo $! >"$lab_run/host$id.pid"
}

lab_host_restore() { # ID
    lab_qmp "$1" migrate-incoming "{\"uri\":\"exec:cat $(lab_state_directory)/host$1.state\"}" wait-migrate cont >/dev/null
}

lab_host_is_up() { local pid; pid=$(lab_pid "$1"); [ -n "$pid" ] && lab_pid_is_ours "$pid" "$1"; }
lab_running_ids() { local id; for id in $(lab_host_ids); do ! lab_host_is_up "$id" || echo "$id"; done; }

# Until the host runs a command; then set its clock, which stood still while it was saved, and mount the share.
lab_host_ready() { # ID
    local id=$1 end=$((SECONDS + LAB_READY_SECONDS))
    until REMOTE_SHELL_CONNECT_MS=500 lab_do "$id" true 2>/dev/null; do
        lab_host_is_up "$id" || lab_die "host $id ended: $(tail -3 "$lab_run/host$id.log")"
        [ $SECONDS -lt $end ] || lab_die "host $id did not answer in $LAB_READY_SECONDS s; see $lab_run/host$id.console"
        sleep 0.05
    done
    lab_do "$id" "date -s @$(lab_now) >/dev/null; mountpoint -q /mnt/share || mount -o ro,noatime /dev/vdb /mnt/share"
}

lab_host_kill() { # ID: pull the plug; wait until the process is gone
    local pid tries=0
    pid=$(lab_pid "$1")
    while lab_pid_is_ours "$pid" "$1" && [ $tries -lt 500 ]; do
        kill -KILL "$pid" 2>/dev/null || :
        sleep 0.01
        tries=$((tries + 1))
    done
    rm -f "$lab_run/host$1.qmp" "$lab_run/ssh-$(lab_address "$1")"
}

# Saves the hosts given: they boot, are warmed, stopped and written to files, one lab of their own for it.
lab_states_make() { # ID...
    local id states
    lab_say "states: boot and save host" "$@"
    states=$(lab_state_directory)
    mkdir -p "$states"
    lab_state_id >"$states/id"
    lab_network_up "$@"
    lab_share_write
    for id in "$@"; do
        lab_host_disk "$id" cold
        lab_host_start "$id" cold
    done
    lab_each lab_state_warm "$@"
    for id in "$@"; do
        lab_qmp "$id" stop migrate-set-parameters '{"max-bandwidth":10000000000}' \
            migrate "{\"uri\":\"exec:cat > $states/host$id.new\"}" wait-migrate quit >"$lab_run/host$id.save"
        lab_host_kill "$id"
        mv "$lab_run/host$id.qcow2" "$states/host$id.qcow2"
        mv "$states/host$id.new" "$states/host$id.state"    # last: what is there is whole
    done
}

# What runs here is in the page cache of every restored host. The share must not be mounted in a saved state: it
# has other content by the time of the restore.
lab_state_warm() { # ID
    lab_host_ready "$1"
    # shellcheck disable=SC2016   # expanded on the host
    lab_do "$1" 'until systemctl is-active -q ssh; do sleep 0.2; done
        python3 -c "import json, zipfile, subprocess, socket, ssl, tempfile, platform"
        for program in tar rsync nft ip curl; do $program --version || $program -V; done
        modprobe vhost_net; sha256sum /usr/bin/ssh; umount /mnt/share; blockdev --flushbufs /dev/vdb; sync' >/dev/null 2>&1
    lab_ssh "$1" true </dev/null || :
    lab_in_namespace ssh "${lab_ssh_options[@]}" -O exit "root@$(lab_address "$1")" 2>/dev/null || :
    sleep 1     # what ssh left behind on the host ends
}

# Runs FUNCTION ID for every id at once; fails when one failed.
lab_each() { # FUNCTION ID...
    local function=$1 id pids=() pid failed=0
    shift
    for id in "$@"; do
        "$function" "$id" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    return $failed
}
