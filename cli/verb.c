/* The table of nouns and verbs, and the help that is printed from it. */
#include "cli/verb.h"

#include <stdio.h>
#include <string.h>

#include "cli/body.h"
#include "cli/output.h"
#include "cli/verb_functions.h"

#define OWN ROUTE_COUNT
#define WAIT_HELP "  --wait                 wait until it is done, with progress\n"

const struct verb verbs[] = {
    {"cluster", "init", "Make a new cluster with this machine as its first controller.",
     "drover cluster init --name c1 --address 10.0.0.1 --data /var/lib/drover/controller", OWN, ARGUMENT_NONE, NULL, NULL, cluster_init,
     "  --name NAME            name of this controller\n"
     "  --address IP[:PORT]    where its API answers (port 7443)\n"
     "  --data DIR             its data directory\n"
     "  --cluster-name NAME    name of the cluster\n"},
    {"cluster", "show", NULL, "drover cluster show", ROUTE_ID_cluster_show, ARGUMENT_NONE, NULL, NULL, NULL, NULL},
    {"cluster", "update", NULL, "drover cluster update --lease-refusal-extends=false", ROUTE_ID_cluster_update, ARGUMENT_NONE, NULL, NULL,
     NULL, NULL},
    {"cluster", "status", "Show controllers, hosts and VMs at a glance.", "drover cluster status", OWN, ARGUMENT_NONE, NULL, NULL,
     cluster_status, NULL},
    {"controller", "list", NULL, "drover controller list", ROUTE_ID_controller_list, ARGUMENT_NONE,
     "name,role,leader,address,raft_id,created_at", NULL, NULL, NULL},
    {"controller", "show", NULL, "drover controller show c1", ROUTE_ID_controller_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"controller", "promote", NULL, "drover controller promote c2", ROUTE_ID_controller_promote, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"controller", "transfer", NULL, "drover controller transfer c2", ROUTE_ID_controller_transfer, ARGUMENT_NAME, NULL, NULL, NULL,
     NULL},
    {"controller", "remove", NULL, "drover controller remove c3 --yes", ROUTE_ID_controller_remove, ARGUMENT_NAME, NULL,
     "Take controller %s out of the cluster for good?", NULL, NULL},
    {"host", "list", NULL, "drover host list", ROUTE_ID_host_list, ARGUMENT_NONE,
     "name,state,schedulable,vms,cpus,committed_vcpus,memory_bytes,committed_memory_bytes,kvm,address", NULL, NULL, NULL},
    {"host", "show", NULL, "drover host show n1", ROUTE_ID_host_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"host", "drain", NULL, "drover host drain n1 --wait", ROUTE_ID_host_drain, ARGUMENT_NAME, NULL, NULL, host_drain,
     "  --wait                 wait until no VM runs there any more, or has memory there, and say which are left\n"},
    {"host", "undrain", NULL, "drover host undrain n1", ROUTE_ID_host_undrain, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"host", "update", NULL, "drover host update n1 --schedulable=false", ROUTE_ID_host_update, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"host", "loss", "Show what would happen if a host were lost now.", "drover host loss n1", ROUTE_ID_host_loss, ARGUMENT_NAME, NULL,
     NULL, host_loss,
     "\n"
     "Nothing is done. Shown are the VMs that are wanted running there: where each would be started, which would wait because no other\n"
     "host has room or may have it, and which would go on when the host is back.\n"},
    {"host", "disarm", NULL, "drover host disarm n1", ROUTE_ID_host_disarm, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"host", "arm", NULL, "drover host arm n1", ROUTE_ID_host_arm, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"host", "remove", NULL, "drover host remove n3 --yes", ROUTE_ID_host_remove, ARGUMENT_NAME, NULL,
     "Take host %s out of the cluster?", NULL, NULL},
    {"ha", "disarm", NULL, "drover ha disarm", ROUTE_ID_ha_disarm, ARGUMENT_NONE, NULL, NULL, NULL, NULL},
    {"ha", "arm", NULL, "drover ha arm", ROUTE_ID_ha_arm, ARGUMENT_NONE, NULL, NULL, NULL, NULL},
    {"flavor", "list", NULL, "drover flavor list", ROUTE_ID_flavor_list, ARGUMENT_NONE, "name,vcpus,memory_bytes,disk_bytes,created_at",
     NULL, NULL, NULL},
    {"flavor", "create", NULL, "drover flavor create small --vcpus 1 --memory 512MiB", ROUTE_ID_flavor_create, ARGUMENT_NEW_NAME, NULL,
     NULL, NULL, NULL},
    {"flavor", "show", NULL, "drover flavor show small", ROUTE_ID_flavor_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"flavor", "update", NULL, "drover flavor update small --label tier=web", ROUTE_ID_flavor_update, ARGUMENT_NAME, NULL, NULL, NULL,
     NULL},
    {"flavor", "delete", NULL, "drover flavor delete small --yes", ROUTE_ID_flavor_delete, ARGUMENT_NAME, NULL, "Remove flavor %s?",
     NULL, NULL},
    {"image", "list", NULL, "drover image list", ROUTE_ID_image_list, ARGUMENT_NONE, "name,kind,state,copies,created_at", NULL, NULL, NULL},
    {"image", "create", "Make an image: upload a file, have a URL imported or a snapshot of a VM copied, or name files that every host fetches by itself.",
     "drover image create debian --file debian-12-generic-amd64.qcow2 --format qcow2", ROUTE_ID_image_create, ARGUMENT_NEW_NAME, NULL,
     NULL, image_create,
     "  --file FILE            upload this; called again after an interruption it goes on where it was\n"
     "  --url URL              have a host of the cluster fetch this (http, https)\n"
     "  --format WORD          what the file is: raw, qcow2, vmdk, vhdx or ova; never guessed\n"
     "  --sha256 HEX           what its SHA-256 must be\n"
     "  --from-snapshot NAME   have a disk of a VM copied as this snapshot has it, while the VM runs; a VM of the image is a clone.\n"
     "                         It boots as the VM does; of a VM with an image of kind kernel give --kind kernel\n"
     "  --from-disk NAME       which disk of the snapshot, where it has several\n"
     "  --wait                 with --url and --from-snapshot: wait until it is done, with progress\n"},
    {"image", "show", NULL, "drover image show debian", ROUTE_ID_image_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"image", "update", NULL, "drover image update debian --label os=debian", ROUTE_ID_image_update, ARGUMENT_NAME, NULL, NULL, NULL,
     NULL},
    {"image", "download", "Get the raw disk of an image; an earlier attempt is gone on with, the checksum compared.",
     "drover image download debian debian.raw", OWN, ARGUMENT_NAME_FILE, NULL, NULL, image_download, NULL},
    {"image", "distribute", "Have hosts fetch an image ahead, and keep it; all of them where none are named.",
     "drover image distribute debian --host n2 --host n3 --wait", ROUTE_ID_image_distribute, ARGUMENT_NAME, NULL, NULL,
     image_distribute, "  --wait                 wait until all of them have it\n"},
    {"image", "delete", NULL, "drover image delete debian --yes", ROUTE_ID_image_delete, ARGUMENT_NAME, NULL, "Forget image %s?", NULL,
     NULL},
    {"network", "list", NULL, "drover network list", ROUTE_ID_network_list, ARGUMENT_NONE,
     "name,bridge,uplink,vlan,ipv4_subnet,ipv4_gateway,ipv6_subnet,dhcp,mtu", NULL, NULL, NULL},
    {"network", "create", NULL,
     "drover network create lan --uplink eth1 --vlan 42 --ipv4-subnet 192.0.2.0/24 --ipv4-gateway 192.0.2.1 --dns-server 192.0.2.1 "
     "--pool first=192.0.2.50,last=192.0.2.99",
     ROUTE_ID_network_create, ARGUMENT_NEW_NAME, NULL, NULL, NULL, NULL},
    {"network", "show", NULL, "drover network show lan", ROUTE_ID_network_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"network", "update", NULL, "drover network update lan --dns-server 192.0.2.1 --dns-server 192.0.2.2", ROUTE_ID_network_update, ARGUMENT_NAME,
     NULL, NULL, NULL, NULL},
    {"network", "delete", NULL, "drover network delete lan --yes", ROUTE_ID_network_delete, ARGUMENT_NAME, NULL, "Remove network %s?",
     NULL, NULL},
    {"security-group", "list", NULL, "drover security-group list", ROUTE_ID_security_group_list, ARGUMENT_NONE, "name,rules,created_at",
     NULL, NULL, NULL},
    {"security-group", "create", NULL,
     "drover security-group create web --rule direction=inbound,protocol=tcp,port-first=443 --rule "
     "direction=inbound,protocol=tcp,port-first=22,remote=192.0.2.0/24",
     ROUTE_ID_security_group_create, ARGUMENT_NEW_NAME, NULL, NULL, NULL, NULL},
    {"security-group", "show", NULL, "drover security-group show web", ROUTE_ID_security_group_show, ARGUMENT_NAME, NULL, NULL, NULL,
     NULL},
    {"security-group", "update", NULL,
     "drover security-group update web --rule direction=inbound,protocol=tcp,port-first=443 --rule "
     "direction=inbound,protocol=tcp,port-first=22,remote=192.0.2.0/24 --rule direction=inbound,protocol=icmp",
     ROUTE_ID_security_group_update, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"security-group", "delete", NULL, "drover security-group delete web --yes", ROUTE_ID_security_group_delete, ARGUMENT_NAME, NULL,
     "Remove security group %s?", NULL, NULL},
    {"pool", "list", NULL, "drover pool list", ROUTE_ID_pool_list, ARGUMENT_NONE, "name,kind,path,hosts,created_at", NULL, NULL, NULL},
    {"pool", "create", NULL, "drover pool create nas --kind shared-dir --path /srv/nas --host n1 --host n2", ROUTE_ID_pool_create,
     ARGUMENT_NEW_NAME, NULL, NULL, NULL, NULL},
    {"pool", "show", NULL, "drover pool show nas", ROUTE_ID_pool_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"pool", "update", NULL, "drover pool update nas --host n1 --host n2 --host n3", ROUTE_ID_pool_update, ARGUMENT_NAME, NULL, NULL, NULL,
     NULL},
    {"pool", "delete", NULL, "drover pool delete nas --yes", ROUTE_ID_pool_delete, ARGUMENT_NAME, NULL, "Forget pool %s?", NULL, NULL},
    {"volume", "list", NULL, "drover volume list", ROUTE_ID_volume_list, ARGUMENT_NONE,
     "name,size_bytes,pool,host,state,vm_name,disk,created_at", NULL, NULL, NULL},
    {"volume", "create", NULL, "drover volume create data1 --pool nas --size 20GiB --wait", ROUTE_ID_volume_create, ARGUMENT_NEW_NAME, NULL,
     NULL, NULL, WAIT_HELP},
    {"volume", "show", NULL, "drover volume show data1", ROUTE_ID_volume_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"volume", "update", NULL, "drover volume update data1 --size 40GiB --wait", ROUTE_ID_volume_update, ARGUMENT_NAME, NULL, NULL, NULL,
     WAIT_HELP},
    {"volume", "attach", NULL, "drover volume attach data1 --vm web1 --wait", ROUTE_ID_volume_attach, ARGUMENT_NAME, NULL, NULL, NULL,
     WAIT_HELP},
    {"volume", "detach", NULL, "drover volume detach data1 --wait", ROUTE_ID_volume_detach, ARGUMENT_NAME, NULL, NULL, NULL, WAIT_HELP},
    {"volume", "move", NULL, "drover volume move data1 --pool nas --wait", ROUTE_ID_volume_move, ARGUMENT_NAME, NULL, NULL, NULL,
     WAIT_HELP
     "\n"
     "A host that has both pools copies it, also while a VM uses it. Until all of it is there it is in the pool that it is in, and stays\n"
     "there where the move fails or is cancelled (`drover operation cancel`); what is left in the other pool is removed (other_pool in\n"
     "`drover volume show` until it is).\n"},
    {"volume", "snapshot", NULL, "drover volume snapshot data1 before-upgrade --wait", ROUTE_ID_volume_snapshot, ARGUMENT_VM_AND_NEW_NAME, NULL,
     NULL, NULL,
     WAIT_HELP
     "\n"
     "The snapshot is one like a VM's: drover snapshot show, revert and delete; a revert needs the volume's VM off, or the volume detached.\n"},
    {"volume", "forget-left", NULL, "drover volume forget-left data1 --yes", ROUTE_ID_volume_forget_left, ARGUMENT_NAME, NULL,
     "Forget what a move has left of volume %s? It stays in the other pool, and takes room there.", NULL, NULL},
    {"volume", "delete", NULL, "drover volume delete data1 --yes --wait", ROUTE_ID_volume_delete, ARGUMENT_NAME, NULL,
     "Remove volume %s and what is on it for good?", NULL, WAIT_HELP},
    {"vm", "list", NULL, "drover vm list --filter state=running", ROUTE_ID_vm_list, ARGUMENT_NONE,
     "name,state,wanted,host_name,vcpus,memory_bytes,image,restarts", NULL, NULL, NULL},
    {"vm", "create",
     "Make a VM and start it. A clone of another one, on the same host: drover vm clone; on others, too: drover image create NAME --from-snapshot "
     "SNAPSHOT --wait, then --image NAME.",
     "drover vm create web1 --image debian --flavor small --nic network=lan,security-group=web --ssh-keys @id_ed25519.pub --wait",
     ROUTE_ID_vm_create, ARGUMENT_NEW_NAME, NULL, NULL, NULL, WAIT_HELP},
    {"vm", "show", NULL, "drover vm show web1", ROUTE_ID_vm_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"vm", "update", NULL, "drover vm update web1 --restart always", ROUTE_ID_vm_update, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"vm", "add-nic", "Plug a network interface into a VM, also while it runs.",
     "drover vm add-nic web1 --nic network=lan,security-group=web --wait", OWN, ARGUMENT_NAME, NULL, NULL, vm_add_nic,
     "  --nic KEY=VALUE,...    the interface, as for `drover vm create`\n"
     "  --wait                 wait until its host has done it\n"},
    {"vm", "remove-nic", "Unplug a network interface from a VM, also while it runs.",
     "drover vm remove-nic web1 --mac 52:54:00:12:34:56 --yes", OWN, ARGUMENT_NAME, NULL,
     "Take a network interface away from VM %s?", vm_remove_nic,
     "  --mac MAC              the interface (`drover vm show` lists them)\n"
     "  --wait                 wait until its host has done it\n"},
    {"vm", "limit", "Limit the rate of a VM's disk or network interface, also while it runs.",
     "drover vm limit web1 --disk root --operations-per-second 500", OWN, ARGUMENT_NAME, NULL, NULL, vm_limit,
     "  --disk NAME            the disk, or\n"
     "  --mac MAC              the network interface\n"
     "  --operations-per-second N  requests or frames, both ways together; 0 = no limit\n"
     "  --operations-burst N   how many may go at once after a rest\n"
     "  --bytes-per-second SIZE  bytes, both ways together; 0 = no limit\n"
     "  --bytes-burst SIZE     how many may go at once after a rest\n"
     "  --wait                 wait until its host has done it\n"},
    {"vm", "start", NULL, "drover vm start web1 --wait", ROUTE_ID_vm_start, ARGUMENT_NAME, NULL, NULL, NULL, WAIT_HELP},
    {"vm", "stop", NULL, "drover vm stop web1 --wait", ROUTE_ID_vm_stop, ARGUMENT_NAME, NULL, "Stop VM %s?", NULL, WAIT_HELP},
    {"vm", "reboot", NULL, "drover vm reboot web1 --wait", ROUTE_ID_vm_reboot, ARGUMENT_NAME, NULL, "Reboot VM %s?", NULL, WAIT_HELP},
    {"vm", "pause", NULL, "drover vm pause web1", ROUTE_ID_vm_pause, ARGUMENT_NAME, NULL, NULL, NULL, WAIT_HELP},
    {"vm", "resume", NULL, "drover vm resume web1", ROUTE_ID_vm_resume, ARGUMENT_NAME, NULL, NULL, NULL, WAIT_HELP},
    {"vm", "delete", NULL, "drover vm delete web1 --yes --wait", ROUTE_ID_vm_delete, ARGUMENT_NAME, NULL,
     "Remove VM %s and its disks for good?", NULL, WAIT_HELP},
    {"vm", "migrate", NULL, "drover vm migrate web1 --to n2 --wait", ROUTE_ID_vm_migrate, ARGUMENT_NAME, NULL, NULL, NULL,
     "  --wait                 wait until it is done, with round, bytes, rate of writing, slowing down and the time left\n"},
    {"vm", "move-disk", NULL, "drover vm move-disk web1 --disk root --pool nas --wait", ROUTE_ID_vm_move_disk, ARGUMENT_NAME, NULL, NULL, NULL,
     WAIT_HELP
     "\n"
     "Its host copies it, also while the VM runs. Until all of it is there it is where it is, and stays there where the move fails or is\n"
     "cancelled (`drover operation cancel`); what is left at the other place is removed (other_pool and other_host of the disk in\n"
     "`drover vm show` until it is). Snapshots do not go along: a VM that has some is refused.\n"},
    {"vm", "clone", NULL, "drover vm clone web1 web2 --snapshot before-upgrade --wait", ROUTE_ID_vm_clone, ARGUMENT_VM_AND_NEW_NAME, NULL,
     NULL, NULL,
     WAIT_HELP
     "\n"
     "It is made on the host of the other VM, and off: drover vm start NEW. `drover operation cancel` ends it, and nothing is left. It has what is\n"
     "on the disks, host keys and all; cloud-init, where the guest has it and a seed disk, takes it for a new machine. Volumes are cloned with it:\n"
     "data1 becomes NEW-data1, and web1-data of web1 NEW-data (--without-volumes leaves them out).\n"},
    {"vm", "forget-left", NULL, "drover vm forget-left web1 --disk root --yes", ROUTE_ID_vm_forget_left, ARGUMENT_NAME, NULL,
     "Forget what a move has left of the disk of VM %s? It stays in the other place, and takes room there.", NULL, NULL},
    {"vm", "upgrade", NULL, "drover vm upgrade web1 --wait", ROUTE_ID_vm_upgrade, ARGUMENT_NAME, NULL, NULL, NULL,
     WAIT_HELP
     "\n"
     "It stands still for some tens of milliseconds, whatever its memory: that is handed over, not copied. For this it has to be\n"
     "memory that can be (drover-agent run --shared-memory). `drover vm show` tells which program runs it (vmm_version).\n"},
    {"vm", "placement", NULL, "drover vm placement web1", ROUTE_ID_vm_placement, ARGUMENT_NAME, NULL, NULL, vm_placement, NULL},
    {"vm", "console", "Attach to the serial console; Ctrl-] ends it.", "drover vm console web1", OWN, ARGUMENT_NAME, NULL, NULL,
     vm_console,
     "  --seconds N            end by itself after so long\n"
     "  --until TEXT           end when this text has been shown\n"},
    {"vm", "events", "Show what happened to a VM.", "drover vm events web1", OWN, ARGUMENT_NAME, NULL, NULL, event_list, NULL},
    {"snapshot", "list", NULL, "drover snapshot list --filter vm_name=web1", ROUTE_ID_snapshot_list, ARGUMENT_NONE,
     "name,vm_name,volume_name,state,consistency,ram,created_at", NULL, NULL, NULL},
    {"snapshot", "create", NULL, "drover snapshot create web1 before-upgrade --wait", ROUTE_ID_snapshot_create,
     ARGUMENT_VM_AND_NEW_NAME, NULL, NULL, NULL, WAIT_HELP},
    {"snapshot", "show", NULL, "drover snapshot show before-upgrade", ROUTE_ID_snapshot_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"snapshot", "update", NULL, "drover snapshot update before-upgrade --label keep=yes", ROUTE_ID_snapshot_update, ARGUMENT_NAME,
     NULL, NULL, NULL, NULL},
    {"snapshot", "revert", NULL, "drover snapshot revert before-upgrade --yes --wait", ROUTE_ID_snapshot_revert, ARGUMENT_NAME, NULL,
     "Take the VM or volume back to snapshot %s? What was written since is lost", NULL, WAIT_HELP},
    {"snapshot", "clone", NULL, "drover snapshot clone before-upgrade data2 --wait", ROUTE_ID_snapshot_clone, ARGUMENT_VM_AND_NEW_NAME, NULL, NULL,
     NULL, WAIT_HELP},
    {"snapshot", "delete", NULL, "drover snapshot delete before-upgrade --yes --wait", ROUTE_ID_snapshot_delete, ARGUMENT_NAME, NULL,
     "Remove snapshot %s?", NULL, WAIT_HELP},
    {"backup-store", "list", NULL, "drover backup-store list", ROUTE_ID_backup_store_list, ARGUMENT_NONE,
     "name,location,bytes_per_second,verified_at,damage,created_at", NULL, NULL, NULL},
    {"backup-store", "create", NULL, "drover backup-store create nas --location /srv/backups --store-key @store.key",
     ROUTE_ID_backup_store_create, ARGUMENT_NEW_NAME, NULL, NULL, backup_store_create,
     "  --attach               learn of the backups that it has already\n"},
    {"backup-store", "attach", "Learn of all backups that a store has and the cluster does not know.", "drover backup-store attach nas",
     OWN, ARGUMENT_NAME, NULL, NULL, backup_store_attach, NULL},
    {"backup-store", "show", NULL, "drover backup-store show nas", ROUTE_ID_backup_store_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"backup-store", "update", NULL, "drover backup-store update nas --bytes-per-second 50MiB", ROUTE_ID_backup_store_update,
     ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"backup-store", "delete", NULL, "drover backup-store delete nas --yes", ROUTE_ID_backup_store_delete, ARGUMENT_NAME, NULL,
     "Forget backup store %s?", backup_store_delete, NULL},
    {"backup-policy", "list", NULL, "drover backup-policy list", ROUTE_ID_backup_policy_list, ARGUMENT_NONE,
     "name,store,every_s,paused,keep_last,keep_daily,keep_weekly,keep_monthly", NULL, NULL, NULL},
    {"backup-policy", "create", "Schedule backups of the VMs that have the label backup-policy=NAME.",
     "drover backup-policy create nightly --store nas --every-s 86400 --keep-daily 7 --keep-weekly 4", ROUTE_ID_backup_policy_create,
     ARGUMENT_NEW_NAME, NULL, NULL, NULL, NULL},
    {"backup-policy", "show", NULL, "drover backup-policy show nightly", ROUTE_ID_backup_policy_show, ARGUMENT_NAME, NULL, NULL, NULL,
     NULL},
    {"backup-policy", "update", NULL, "drover backup-policy update nightly --paused", ROUTE_ID_backup_policy_update, ARGUMENT_NAME, NULL,
     NULL, NULL, NULL},
    {"backup-policy", "delete", NULL, "drover backup-policy delete nightly --yes", ROUTE_ID_backup_policy_delete, ARGUMENT_NAME, NULL,
     "Remove backup policy %s?", NULL, NULL},
    {"backup", "list", NULL, "drover backup list --filter vm_name=web1", ROUTE_ID_backup_list, ARGUMENT_NONE,
     "name,vm_name,store_name,state,consistency,read_bytes,stored_bytes,created_at,verified_at,damage,booted_at,boot_failure", NULL, NULL, NULL},
    {"backup", "create", NULL, "drover backup create web1 --store nas --wait", ROUTE_ID_backup_create, ARGUMENT_VM_AND_NEW_NAME, NULL,
     NULL, NULL, WAIT_HELP},
    {"backup", "show", NULL, "drover backup show web1-20260131-120000", ROUTE_ID_backup_show, ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"backup", "update", NULL, "drover backup update web1-20260131-120000 --label keep=yes", ROUTE_ID_backup_update, ARGUMENT_NAME,
     NULL, NULL, NULL, NULL},
    {"backup", "delete", NULL, "drover backup delete web1-20260131-120000 --yes", ROUTE_ID_backup_delete, ARGUMENT_NAME, NULL,
     "Remove backup %s from its store?", NULL, WAIT_HELP},
    {"backup", "restore", NULL, "drover backup restore web1-20260131-120000 --yes --wait", ROUTE_ID_backup_restore, ARGUMENT_NAME,
     NULL, "Make the VM's disks what backup %s has? What they hold now is lost", NULL, WAIT_HELP},
    {"backup", "verify",
     "Read all that a backup needs, or all that a store has, and compare it with its checksums; what is damaged is named. Or boot a backup.",
     "drover backup verify web1-20260131-120000 --wait", ROUTE_ID_backup_verify, ARGUMENT_NAME_OR_NONE, NULL, NULL, backup_verify,
     "  --store NAME           where no backup is named: all of this store; needed where there are several\n" WAIT_HELP},
    {"backup", "prune", "Remove the backups of a store that no rule keeps, after asking, and give back the room that none needs any more.",
     "drover backup prune --store nas --keep-daily 7 --keep-weekly 4 --dry-run", ROUTE_ID_backup_store_prune, ARGUMENT_NONE,
     "name,vm_name,created_at", NULL, backup_prune,
     "  --store NAME           the store; needed where there are several\n" WAIT_HELP},
    {"operation", "list", NULL, "drover operation list --filter state=running", ROUTE_ID_operation_list, ARGUMENT_NONE,
     "id,kind,target_name,state,step,progress_done,progress_total,created_at,ended_at,error_text", NULL, NULL, NULL},
    {"operation", "show", NULL, "drover operation show 6f1c0b0e-6c1e-4d7a-9a57-0c6b8f3b2a11", ROUTE_ID_operation_show, ARGUMENT_NAME,
     NULL, NULL, NULL, NULL},
    {"operation", "wait", "Wait for the end of an operation, with progress.",
     "drover operation wait 6f1c0b0e-6c1e-4d7a-9a57-0c6b8f3b2a11", OWN, ARGUMENT_NAME, NULL, NULL, operation_wait_verb, NULL},
    {"operation", "cancel", NULL, "drover operation cancel 6f1c0b0e-6c1e-4d7a-9a57-0c6b8f3b2a11", ROUTE_ID_operation_cancel,
     ARGUMENT_NAME, NULL, NULL, NULL, NULL},
    {"token", "list", NULL, "drover token list", ROUTE_ID_token_list, ARGUMENT_NONE, "name,role,expires_at,uses", NULL, NULL, NULL},
    {"token", "create", "Make a join token; it is shown this once.", "drover token create n2 --role host", ROUTE_ID_token_create,
     ARGUMENT_NEW_NAME, NULL, NULL, token_create, NULL},
    {"token", "delete", NULL, "drover token delete n2 --yes", ROUTE_ID_token_delete, ARGUMENT_NAME, NULL, "Remove token %s?", NULL,
     NULL},
    {"event", "list", "Show what happened, oldest first.", "drover event list --after 100", OWN, ARGUMENT_NONE, NULL, NULL, event_list,
     "  --after INDEX          only what came after\n"},
    {"event", "follow", "Show what happens, as it happens; Ctrl-C ends it.", "drover event follow", OWN, ARGUMENT_NONE, NULL, NULL,
     event_follow, "  --after INDEX          begin after this\n"},
    {"drill", "list", "List the drills that there are, and how each ended last.", "drover drill list", OWN, ARGUMENT_NONE, NULL, NULL,
     drill_list, NULL},
    {"drill", "run", "Make something fail in the living cluster, measure what happens, and put it back.",
     "drover drill run host-loss --host n2", OWN, ARGUMENT_NAME, NULL, NULL, drill_run_verb,
     "  --host NAME            the host that is to fail; where not given, one with few VMs with ha\n"
     "  --controller NAME      the controller that is to fail alone; where not given, the leader\n"
     "  --seconds N            how long what fails is gone: a host 10 to 60 (20), a controller up to 60 (10)\n"
     "  --machines PROGRAM     quorum-loss: a program that reaches the controllers' machines (docs/drills.md)\n"
     "  --image NAME           backup-restore: what its VM is made of\n"
     "  --store NAME           backup-restore: where to; where not given, the only store\n"
     "  --memory BYTES         backup-restore: memory of its VM (256MiB)\n"
     "  --check                only say whether it could be made now\n"
     "  --stay                 leave VMs and leadership where they are afterwards\n"},
    {"drill", "report", "Show the report of a drill, or list those that are kept.", "drover drill report drill-20260131-120000-0a1b", OWN,
     ARGUMENT_NAME_OR_NONE, NULL, NULL, drill_report, NULL},
    {"context", "list", "List the clusters that this CLI knows.", "drover context list", OWN, ARGUMENT_NONE, NULL, NULL, context_list,
     NULL},
    {"context", "add", "Make a cluster known to this CLI.",
     "drover context add lab --endpoint 10.0.0.1:7443 --ca ca.pem --cert cert.pem --key key.pem", OWN, ARGUMENT_NEW_NAME, NULL, NULL,
     context_add, NULL},
    {"context", "use", "Use this cluster from now on.", "drover context use lab", OWN, ARGUMENT_NAME, NULL, NULL, context_use, NULL},
    {"context", "remove", "Forget a cluster; its files stay.", "drover context remove lab --yes", OWN, ARGUMENT_NAME, NULL,
     "Forget context %s?", context_remove, NULL},
    {"completion", "bash", "Print the completion script for bash.", "drover completion bash > /etc/bash_completion.d/drover", OWN,
     ARGUMENT_NONE, NULL, NULL, completion_bash, NULL},
    {"completion", "zsh", "Print the completion script for zsh.", "drover completion zsh > ~/.zfunc/_drover", OWN, ARGUMENT_NONE, NULL,
     NULL, completion_zsh, NULL},
    {"completion", "fish", "Print the completion script for fish.",
     "drover completion fish > ~/.config/fish/completions/drover.fish", OWN, ARGUMENT_NONE, NULL, NULL, completion_fish, NULL},
};
const size_t verbs_count = ARRAY_SIZE(verbs);

const struct verb *verb_find(const char *noun, const char *verb)
{
    for (size_t i = 0; i < verbs_count; i++)
        if (strcmp(verbs[i].noun, noun) == 0 && strcmp(verbs[i].verb, verb) == 0)
            return &verbs[i];
    return NULL;
}

bool noun_known(const char *noun)
{
    for (size_t i = 0; i < verbs_count; i++)
        if (strcmp(verbs[i].noun, noun) == 0)
            return true;
    return false;
}

/* The route's words are the API's, where force is a parameter. The caller frees it. */
static char *help_of(const struct verb *v)
{
    static const char in_api[] = "?force=true", here[] = "--force";
    const char *doc = v->help ? v->help : schema_routes[v->route].doc, *at;
    struct bytes_writer w = {0};
    for (; (at = strstr(doc, in_api)) != NULL; doc = at + strlen(in_api)) {
        bytes_put(&w, doc, (size_t)(at - doc));
        bytes_put_text(&w, here);
    }
    bytes_put_text(&w, doc);
    bytes_put_u8(&w, 0);
    return (char *)w.data;
}

static const char *argument_of(const struct verb *v)
{
    if (v->argument == ARGUMENT_VM_AND_NEW_NAME)
        return strcmp(v->noun, "volume") == 0  ? " VOLUME [NAME]"
               : strcmp(v->verb, "clone") != 0 ? " VM [NAME]"
               : strcmp(v->noun, "vm") == 0    ? " VM NEW"
                                               : " SNAPSHOT NAME";
    if (v->argument == ARGUMENT_NAME_FILE)
        return " NAME FILE";
    if (v->argument == ARGUMENT_NAME_OR_NONE)
        return " [ID]";
    return v->argument == ARGUMENT_NONE ? "" : strcmp(v->noun, "operation") == 0 ? " ID" : " NAME";
}

static void help_global(void)
{
    puts("\nOptions of every command:\n"
         "  -o, --output FORMAT    table, json, yaml, or name\n"
         "  -y, --yes              do not ask before dangerous things\n"
         "  -q, --quiet            print results only\n"
         "      --timeout SECONDS  give up after so long (120)\n"
         "      --context NAME     a cluster of `drover context list`\n"
         "      --endpoint LIST    API addresses by comma, in place of a context (DROVER_ENDPOINT)\n"
         "      --ca, --cert, --key FILE   PEM files that go with it (DROVER_CA, DROVER_CERT, DROVER_KEY)\n"
         "  -h, --help             this help");
}

void help_all(void)
{
    puts("drover - clusters of virtual machines\n\nUsage: drover NOUN VERB [NAME] [--option value]...\n");
    for (size_t i = 0; i < verbs_count; i++) {
        if (i == 0 || strcmp(verbs[i].noun, verbs[i - 1].noun) != 0)
            printf("%s  %-15s", i ? "\n" : "", verbs[i].noun);
        printf(" %s", verbs[i].verb);
    }
    puts("\n\n`drover NOUN --help` and `drover NOUN VERB --help` tell more, with an example for each.");
    help_global();
    puts("\nExit status: 0 done; 2 wrong request; 3 not allowed; 4 not found; 5 conflict; 6 changed meanwhile; 7 no host can\n"
         "take the VM; 8 cluster busy or without a leader; 9 unreachable or too slow; 10 not supported; 11 cancelled; 1 other.");
}

void help_noun(const char *noun)
{
    printf("Usage: drover %s VERB\n\n", noun);
    for (size_t i = 0; i < verbs_count; i++)
        if (strcmp(verbs[i].noun, noun) == 0) {
            CLEANUP_FREE char *help = help_of(&verbs[i]);
            char left[40];
            snprintf(left, sizeof left, "  %s ", verbs[i].verb);
            output_wrapped(left, 15, help);
            printf("%15s  %s\n", "", verbs[i].example);
        }
    help_global();
}

void help_verb(const struct verb *v)
{
    CLEANUP_FREE char *help = help_of(v);
    output_wrapped("", 0, help);
    printf("\nUsage: drover %s %s%s [--option value]...\nExample: %s\n", v->noun, v->verb, argument_of(v), v->example);
    if (v->options != NULL)
        printf("\nOptions:\n%s", v->options);
    if (v->route != ROUTE_COUNT && schema_routes[v->route].body->name != NULL) {
        puts("\nFields:");
        body_help(schema_routes[v->route].body, schema_routes[v->route].method == ROUTE_PATCH);
    }
    if (v->route != ROUTE_COUNT && (schema_routes[v->route].flags & ROUTE_LIST))
        puts("\nOptions:\n  --filter TEXT          such as 'state=running and labels.tier=web'\n"
             "  --fields LIST          columns of the table, by comma");
    if (v->route != ROUTE_COUNT && (schema_routes[v->route].flags & ROUTE_DRY))
        puts("  --dry-run              check and place, but change nothing");
    if (v->route != ROUTE_COUNT && (schema_routes[v->route].flags & ROUTE_FORCE))
        puts("  --force                as said above");
    help_global();
}
