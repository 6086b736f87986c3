# shellcheck shell=bash
# Debian's cloud kernel, unpacked and not installed: for the lab's hosts and for the stock guest. Sourced.
# Leaves $lab_kernel/{vmlinuz,vmlinux,version,lib/modules/}.

lab_kernel_package=linux-image-cloud-amd64

# The package that the meta package stands for today, such as linux-image-6.1.0-49-cloud-amd64.
lab_kernel_concrete() {
    apt-cache depends "$lab_kernel_package" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1
}

lab_kernel_download() { # DIRECTORY
    local name
    name=$(lab_kernel_concrete)
    if [ -z "$name" ] || ! (cd "$1" && apt-get -qq -o Acquire::Retries=5 download "$name" 2>/dev/null); then
        apt-get -qq -o Acquire::Retries=5 update >&2 || lab_die "apt-get update failed: the kernel package can't be found"
        name=$(lab_kernel_concrete)
        [ -n "$name" ] || lab_die "no package $lab_kernel_package in this machine's apt sources"
        (cd "$1" && apt-get -qq -o Acquire::Retries=5 download "$name") || lab_die "can't download $name"
    fi
}

lab_kernel_ensure() {
    local work version
    [ ! -f "$lab_kernel/version" ] || return 0
    lab_say "kernel: download and unpack"
    work=$LAB_BUILD/kernel.new
    rm -rf "$work"
    mkdir -p "$work/package" "$work/archive"
    chmod 777 "$work/archive"   # apt downloads as a user of its own
    lab_kernel_download "$work/archive"
    dpkg-deb -x "$work"/archive/linux-image-*.deb "$work/package"
    version=$(ls "$work/package/lib/modules")
    mv "$work/package/boot/vmlinuz-$version" "$work/vmlinuz"
    mkdir -p "$work/lib"
    mv "$work/package/lib/modules" "$work/lib/modules"
    rm -rf "$work/package" "$work/archive"
    depmod -b "$work" "$version"
    "$lab_source/extract_vmlinux.py" "$work/vmlinuz" "$work/vmlinux"
    echo "$version" >"$work/version"
    rm -rf "$lab_kernel"
    mv "$work" "$lab_kernel"
}

# Copy modules and all that they need to TARGET, and their names in loading order to TARGET/order.
lab_kernel_modules() { # TARGET NAME...
    local target=$1 version file name
    shift
    version=$(cat "$lab_kernel/version")
    mkdir -p "$target"
    : >"$target/order"
    for name in "$@"; do
        modprobe -d "$lab_kernel" -S "$version" --show-depends "$name" || lab_die "the kernel has no module $name"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
        name=${file##*/}
        case $name in
        *.xz) name=${name%.xz}; xz -dc "$file" >"$target/$name" ;;
        *.zst) name=${name%.zst}; zstd -qdc "$file" >"$target/$name" ;;
        *) cp "$file" "$target/$name" ;;
        esac
        echo "$name" >>"$target/order"
    done
}

# Pack a directory as an initramfs, the same bytes for the same content.
lab_pack_initrd() { # DIRECTORY FILE
    (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --reproducible -R 0:0) >"$2"
}
