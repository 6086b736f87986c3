# shellcheck shell=bash
# The lab's wires: one bridge in a namespace of the lab's own, a tap per host, and faults on them. Sourced.
# "Host 0" is the driver, that is the bridge itself, from where the tests reach the hosts.

lab_network_up() { # HOST-ID...
    local id
    if ! ip netns list | grep -qw "$lab_namespace"; then
        ip netns add "$lab_namespace"
        lab_in_namespace sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
        lab_in_namespace ip link set lo up
        # a fixed address: the neighbour tables in the saved states know it
        lab_in_namespace ip link add br0 address "$(lab_mac 254)" type bridge stp_state 0 forward_delay 0 mcast_snooping 0
        lab_in_namespace ip addr add "$lab_net.1/24" dev br0
        lab_in_namespace ip link set br0 up
    fi
    for id in "$@"; do
        ! lab_in_namespace ip link show "tap$id" >/dev/null 2>&1 || continue
        lab_in_namespace ip tuntap add "tap$id" mode tap
        lab_in_namespace ip link set "tap$id" master br0 up
        # no ARP from the driver: a packet to a host that is still booting is dropped, not queued for seconds
        lab_in_namespace ip neigh replace "$(lab_address "$id")" lladdr "$(lab_mac "$id")" dev br0 nud permanent
    done
}

lab_taps() { lab_in_namespace ls /sys/class/net | grep '^tap'; }

lab_fault_table() {
    ! lab_in_namespace nft list table bridge lab >/dev/null 2>&1 || return 0
    lab_in_namespace nft -f - <<'NFT'
table bridge lab {
    set cut { type ifname . ifname; }
    set from { type ifname; }
    set to { type ifname; }
    chain forward { type filter hook forward priority 0; iifname . oifname @cut drop; }
    chain input { type filter hook input priority 0; iifname @from drop; }
    chain output { type filter hook output priority 0; oifname @to drop; }
}
NFT
}

lab_lose_frames() { # FROM TO
    lab_fault_table
    if [ "$1" = 0 ]; then lab_in_namespace nft add element bridge lab to "{ tap$2 }"
    elif [ "$2" = 0 ]; then lab_in_namespace nft add element bridge lab from "{ tap$1 }"
    else lab_in_namespace nft add element bridge lab cut "{ tap$1 . tap$2 }"; fi
}

lab_isolate() { # ID: the driver still reaches it
    local tap
    for tap in $(lab_taps); do
        [ "$tap" = "tap$1" ] || { lab_lose_frames "$1" "${tap#tap}"; lab_lose_frames "${tap#tap}" "$1"; }
    done
}

lab_heal() {
    local tap
    lab_in_namespace nft delete table bridge lab 2>/dev/null || :
    for tap in $(lab_taps); do lab_in_namespace tc qdisc del dev "$tap" root 2>/dev/null || :; done
}
