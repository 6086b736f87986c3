# shellcheck shell=bash
# The root disk of a lab host, from Debian packages of this machine's own apt sources. Sourced.
#
# Three steps, each kept until what it depends on differs:
#   kernel   $LAB_BUILD/kernel     (kernel.sh)
#   base     $LAB_BUILD/base.tar   mmdebstrap: depends on the list of packages; 40 of the 50 seconds
#   image    $LAB_BUILD/image      the base made into a lab host: depends on tree.sh; a few seconds
#
# The disk is a raw ext4 image that nobody writes; each host has an overlay on it. Its identity (name, address) comes
# from the kernel command line, so one image serves every host.

lab_base_packages="systemd,systemd-sysv,udev,kmod,openssh-server,python3,iproute2,iputils-ping,nftables,procps,rsync"
lab_base_packages+=",busybox-static,e2fsprogs,util-linux,ca-certificates,curl"
lab_base_packages+=",nfs-common,nfs-kernel-server" # tests/lab/nfs starts them; no other host has one running
# What the programs are linked with; whatever else ldd finds is added.
lab_base_packages+=",libuv1,libjansson4,libcurl4,libssl3,liblz4-1,libpq5,libzstd1,libsodium23,libseccomp2,libmnl0,liburing2"

# This machine's own sources; every later line of them (other vendors) stays out of the lab.
lab_apt_sources() {
    local file
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        [ ! -s "$file" ] || { echo "$file"; return; }
    done
    lab_die "no Debian sources found in /etc/apt"
}

# Shared libraries that the built programs ask for, one soname and its file per line. ldd fails on what is static.
lab_needed_libraries() {
    local kind program
    for kind in $LAB_KINDS; do
        for program in "$lab_root/build/$kind"/bin/*; do
            [ ! -x "$program" ] || ldd "$program" 2>/dev/null || :
        done
    done | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | sort -u
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
    { lab_base_id; cat "$lab_kernel/version" "$lab_source/tree.sh" "$lab_source/host-init" "$lab_source/remote_shell.c"
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
        --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "5"' \
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
