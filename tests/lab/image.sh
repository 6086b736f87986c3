# shellcheck shell=bash
# The root disk of a lab host, from Debian packages of this machine's own apt sources. Sourced.
#
# Three steps, each kept until what it depends on differs:
#   kernel   $LAB_BUILD/kernel     (kernel.sh)
#   base     $LAB_BUILD/base.tar   mmdebstrap: depends on the list of packages; 40 of the 50 seconds
#   image    $LAB_BUILD/image      the base made into a lab host: depends on these scripts; a few seconds
#
# The disk is a raw ext4 image that nobody writes; each host has an overlay on it. Its identity (name, address) comes
# from the kernel command line, so one image serves every host.

lab_base_packages="systemd,systemd-sysv,udev,kmod,openssh-server,python3,iproute2,iputils-ping,nftables,procps,rsync"
lab_base_packages+=",busybox-static,e2fsprogs,util-linux,ca-certificates,curl"
# What the programs are linked with; whatever else ldd finds is added.
lab_base_packages+=",libuv1,libjansson4,libcurl4,libssl3,liblz4-1,libpq5,libzstd1,libsodium23,libseccomp2,libmnl0,liburing2"

# Units that a lab host does not need; each costs boot time where the CPU is emulated.
lab_masked_units="apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service dpkg-db-backup.timer
    fstrim.timer systemd-timesyncd.service getty@tty1.service getty-static.service console-getty.service
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-random-seed.service
    systemd-pstore.service systemd-journal-flush.service systemd-logind.service systemd-user-sessions.service
    systemd-binfmt.service systemd-hwdb-update.service systemd-firstboot.service systemd-sysusers.service
    systemd-boot-system-token.service systemd-machine-id-commit.service systemd-tmpfiles-clean.timer
    systemd-ask-password-wall.path systemd-ask-password-console.path proc-sys-fs-binfmt_misc.automount
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount
    sys-fs-fuse-connections.mount sys-kernel-config.mount modprobe@configfs.service modprobe@drm.service
    modprobe@fuse.service modprobe@efi_pstore.service modprobe@dm_mod.service modprobe@loop.service
    ifupdown-wait-online.service remote-fs.target systemd-remount-fs.service systemd-fsck-root.service
    systemd-fsckd.socket systemd-initctl.socket systemd-network-generator.service networking.service
    ldconfig.service nftables.service rsync.service ssh.socket systemd-journald-audit.socket
    systemd-udev-settle.service kmod-static-nodes.service serial-getty@ttyS0.service
    systemd-tmpfiles-setup-dev.service systemd-sysctl.service getty.target cryptsetup.target integritysetup.target
    veritysetup.target swap.target timers.target paths.target
    systemd-udev-trigger.service systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket"
# (devtmpfs makes the nodes of the few devices a host has; udev would only cost time.)

lab_unneeded_tmpfiles="debian home journal-nocow legacy passwd provision systemd-network systemd-nologin systemd-pstore
    systemd-tmp systemd var x11"

# This machine's own sources; every later line of them (other vendors) stays out of the lab.
lab_apt_sources() {
    local file
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        [ ! -s "$file" ] || { echo "$file"; return; }
    done
    lab_die "no Debian sources found in /etc/apt"
}

# Shared libraries that the built programs ask for, one soname per line.
lab_needed_libraries() {
    local kind program
    for kind in $LAB_KINDS; do
        for program in "$lab_root/build/$kind"/bin/*; do
            [ ! -x "$program" ] || ldd "$program" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }'
        done
    done | sort -u
}

# Packages of libraries that an image made earlier lacks. Looked up here, where the programs were linked.
lab_extra_packages() {
    local name path
    lab_needed_libraries | while read -r name path; do
        if [ ! -f "$lab_image/libraries" ] || ! grep -qxF "$name" "$lab_image/libraries"; then
            dpkg -S "$(readlink -f "$path")" 2>/dev/null || dpkg -S "/usr$path" 2>/dev/null || :
        fi
    done | cut -d: -f1 | sort -u
}

# What is in the base: the fixed list, and what was found missing earlier (kept in extra-packages).
lab_base_list() {
    local extra
    extra=$(paste -sd, "$LAB_BUILD/extra-packages" 2>/dev/null || :)
    echo "$lab_base_packages${extra:+,$extra}"
}
lab_base_id() { { lab_base_list; cat /etc/debian_version; } | sha256sum | cut -c1-16; }
lab_image_id() {
    { lab_base_id; cat "$lab_kernel/version" "$lab_source/image.sh" "$lab_source/kernel.sh" "$lab_source/remote_shell.c"
      echo "$LAB_DISK_MIB $lab_net $lab_port"; } | sha256sum | cut -c1-16
}

lab_base_ensure() {
    local path suite
    [ "$(cat "$LAB_BUILD/base.id" 2>/dev/null)" != "$(lab_base_id)" ] || return 0
    lab_say "base: mmdebstrap"
    rm -f "$LAB_BUILD/base.id" "$LAB_BUILD/base.tar"
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:?}")
    local options=()
    for path in doc man locale info lintian i18n; do options+=(--dpkgopt="path-exclude=/usr/share/$path/*"); done
    mmdebstrap --quiet --mode=root --variant=apt --format=tar --include="$(lab_base_list)" \
        --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt=force-unsafe-io "${options[@]}" \
        "$suite" "$LAB_BUILD/base.tar" "$(lab_apt_sources)" >"$LAB_BUILD/base.log" 2>&1 ||
        { tail -20 "$LAB_BUILD/base.log" >&2; lab_die "mmdebstrap failed; its log is $LAB_BUILD/base.log"; }
    lab_base_id >"$LAB_BUILD/base.id"
}

lab_image_ensure() {
    local extra work tree
    [ "$(id -u)" = 0 ] || lab_die "the lab needs root: namespaces, taps, mmdebstrap, mke2fs -d"
    mkdir -p "$LAB_BUILD"
    lab_kernel_ensure
    extra=$(lab_extra_packages)
    if [ -f "$lab_image/id" ] && [ -n "$extra" ]; then
        lab_say "image: the programs need more libraries:" "$(echo "$extra" | xargs)"
        printf '%s\n' "$extra" >>"$LAB_BUILD/extra-packages"
    fi
    [ "$(cat "$lab_image/id" 2>/dev/null)" != "$(lab_image_id)" ] || return 0
    lab_base_ensure
    lab_say "image: configure"
    work=$LAB_BUILD/image.new
    tree=$work/tree
    rm -rf --one-file-system "$work"
    mkdir -p "$tree"
    tar -C "$tree" --numeric-owner --xattrs --exclude='./dev/*' -xf "$LAB_BUILD/base.tar"
    ssh-keygen -q -t ed25519 -N '' -C lab -f "$work/key"
    ${CC:-cc} -O2 -Wall -Wextra -D_GNU_SOURCE -static -o "$work/remote-shell" "$lab_source/remote_shell.c"
    cp -a "$lab_kernel/lib/modules" "$tree/usr/lib/"
    lab_configure_tree "$tree" "$work"
    find "$tree/lib/" "$tree/usr/lib/" -name '*.so*' -printf '%f\n' | sort -u >"$work/libraries"
    lab_host_initrd "$work"
    lab_say "image: root disk"
    truncate -s "${LAB_DISK_MIB}M" "$work/root.img"
    mke2fs -q -F -t ext4 -O ^has_journal,^metadata_csum,^64bit -E lazy_itable_init=1,root_owner=0:0 -m 0 \
        -L labroot -d "$tree" "$work/root.img"
    rm -rf --one-file-system "$tree"
    lab_image_id >"$work/id"
    rm -rf "$lab_image" "$lab_states"
    mv "$work" "$lab_image"
}

lab_configure_tree() { # TREE WORK
    local tree=$1 work=$2 etc=$1/etc name number
    # shellcheck disable=SC2086   # lists of words
    for name in $lab_masked_units; do ln -sf /dev/null "$etc/systemd/system/$name"; done
    # every generator is a process at each boot and each daemon-reload, and the units here are static
    mkdir -p "$etc/systemd/system-generators"
    for name in "$tree"/lib/systemd/system-generators/*; do
        case $name in *debug-generator) ;; *) ln -sf /dev/null "$etc/systemd/system-generators/${name##*/}" ;; esac
    done
    for name in $lab_unneeded_tmpfiles; do ln -sf /dev/null "$etc/tmpfiles.d/$name.conf"; done
    printf '%s\n' 'd /run/sshd 0755 root root -' 'd /run/lock 1777 root root -' 'f /run/utmp 0664 root utmp -' \
        >"$etc/tmpfiles.d/lab.conf"
    ln -sf /lib/systemd/system/multi-user.target "$etc/systemd/system/default.target"
    : >"$etc/fstab"
    : >"$etc/machine-id"
    rm -f "$tree/var/lib/dbus/machine-id"
    mkdir -p "$etc/systemd/system.conf.d" "$etc/systemd/journald.conf.d" "$tree/root/.ssh" "$tree/mnt/share"
    printf '%s\n' '[Manager]' DefaultTimeoutStopSec=5s DefaultTimeoutStartSec=120s LogLevel=notice \
        >"$etc/systemd/system.conf.d/lab.conf"
    printf '%s\n' '[Journal]' Storage=volatile RuntimeMaxUse=16M Seal=no Audit=no >"$etc/systemd/journald.conf.d/lab.conf"
    # loaded before the host answers: a host that answers has /dev/kvm and /dev/net/tun
    printf '%s\n' kvm_amd tun bridge >"$etc/modules-load.d/lab.conf"
    { echo "127.0.0.1 localhost"; echo "$lab_net.1 driver"
      for number in $(seq 1 "$lab_hosts_max"); do echo "$(lab_address "$number") host$number"; done; } >"$etc/hosts"
    # shellcheck disable=SC2016   # expanded by the shell on the host
    echo 'PATH=/mnt/share/bin:$PATH' >"$tree/root/.bashrc"
    lab_configure_access "$tree" "$work"
    rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*.bin "$tree"/var/log/*.log
}

# The two doors: sshd, and remote-shell for tests.
lab_configure_access() { # TREE WORK
    local tree=$1 work=$2 etc=$1/etc
    rm -f "$etc"/ssh/ssh_host_*
    ssh-keygen -q -t ed25519 -N '' -C lab -f "$etc/ssh/ssh_host_ed25519_key"
    printf '%s\n' 'HostKey /etc/ssh/ssh_host_ed25519_key' 'UsePAM no' 'UseDNS no' 'PrintMotd no' 'X11Forwarding no' \
        'PermitRootLogin prohibit-password' 'PasswordAuthentication no' 'MaxStartups 50' 'MaxSessions 50' \
        >"$etc/ssh/sshd_config.d/lab.conf"
    install -m 600 "$work/key.pub" "$tree/root/.ssh/authorized_keys"
    install -m 600 "$work/key" "$tree/root/.ssh/id_ed25519"
    printf '%s\n' 'Host host*' ' StrictHostKeyChecking no' ' UserKnownHostsFile /dev/null' ' LogLevel ERROR' \
        >"$tree/root/.ssh/config"
    install -m 755 "$work/remote-shell" "$tree/usr/local/sbin/remote-shell"
    printf '%s\n' '[Unit]' 'Description=commands from the driver of the lab' After=systemd-modules-load.service \
        '[Service]' "ExecStart=/usr/local/sbin/remote-shell --listen $lab_port" KillMode=process \
        'Environment=HOME=/root PATH=/mnt/share/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        '[Install]' WantedBy=multi-user.target >"$etc/systemd/system/remote-shell.service"
    mkdir -p "$etc/systemd/system/multi-user.target.wants" "$etc/systemd/system/ssh.service.d"
    ln -sf ../remote-shell.service "$etc/systemd/system/multi-user.target.wants/remote-shell.service"
    # sshd need not wait for the whole boot
    printf '%s\n' '[Unit]' After= 'After=systemd-modules-load.service systemd-tmpfiles-setup.service' Requires= \
        '[Service]' ExecStartPre= >"$etc/systemd/system/ssh.service.d/lab.conf"
}

# Busybox and the few modules needed to reach the root disk and the network; gives the host its identity from the
# words lab.id=N and lab.net=A.B.C of the kernel command line.
lab_host_initrd() { # WORK
    local content=$1/initrd.tree
    mkdir -p "$content"/{bin,dev,proc,sys,new}
    cp "$(command -v busybox)" "$content/bin/busybox"
    lab_kernel_modules "$content/modules" virtio_pci virtio_blk virtio_net ext4
    install -m 755 "$lab_source/host-init" "$content/init"
    lab_pack_initrd "$content" "$1/initrd"
    rm -rf "$content"
}
