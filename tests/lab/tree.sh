# shellcheck shell=bash
# Makes a bare Debian tree a lab host: fast to boot, open to its driver. Sourced. The image depends on this file as
# it is: any change of it builds the image and the saved states anew.

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
    systemd-udev-trigger.service systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket
    rpcbind.service rpcbind.socket nfs-server.service nfs-mountd.service nfs-idmapd.service nfs-blkmap.service nfsdcld.service
    nfs-client.target rpc-statd.service rpc-statd-notify.service rpc-gssd.service rpc-svcgssd.service auth-rpcgss-module.service
    run-rpc_pipefs.mount proc-fs-nfsd.mount"
# (devtmpfs makes the nodes of the few devices a host has; udev would only cost time.)

lab_unneeded_tmpfiles="debian home journal-nocow legacy passwd provision systemd-network systemd-nologin systemd-pstore
    systemd-tmp systemd var x11"

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
