/* The agent: its start, its VMs against the orders, its end.
 *
 * Start: lock of the data directory, identity, what earlier agents left half removed, every VM directory (running
 * VMMs are adopted before the first report goes out), server, session. A VM directory that cannot be read is left
 * alone and told in the log; the controllers' order for it brings it back. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

#include "common/file.h"
#include "common/http_server.h"
#include "common/log.h"
#include "common/program_build.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_plan.h"
#include "compute/agent/cpu_baseline.h"
#include "compute/agent/report_bound.h"
#include "compute/agent/console_bridge.h"
#include "compute/agent/vmm_user.h"

/* ---- VMs ---- */

/* Nothing of it is left here, or nothing that we are to know. */
static void drop_vm(struct agent *a, struct local_vm *vm)
{
    map_remove(&a->vms, vm_id(vm));
    a->closing++;
    vm_close(vm, agent_part_closed, a);
}

static void vm_changed(struct local_vm *vm, void *arg)
{
    struct agent *a = arg;
    bool gone = vm_is_gone(vm);
    agent_network_tick(a);
    if (!a->stopping)
        agent_migrations_vm_changed(a, vm);
    if (gone && vm_is_forgotten(vm) && !agent_migrations_hold(a, vm))
        drop_vm(a, vm);
    if (a->session == NULL)
        return;
    if (gone && a->ask_again) {
        a->ask_again = false;
        session_ask_again(a->session);
    } else {
        session_poke(a->session);
    }
}

void agent_vm_look(struct agent *a, struct local_vm *vm)
{
    vm_changed(vm, a);
}

/* As the file is now: VMs that were started before may be run by another (vm_seen). */
static void put_vmm_version(const struct agent *a, struct node_report *report)
{
    char version[PROGRAM_BUILD_SIZE];
    bool reads = program_build_of_file(a->vmm_path, version, NULL) >= 0;
    for (const char *at = version; reads && *at != '\0'; at++)
        reads = *at >= ' ' && *at <= '~'; /* a damaged file must not keep the report from being taken */
    if (!reads)
        snprintf(version, sizeof(version), "none that can be read");
    OBJECT_TEXT(node_report, report, vmm_version, version[0] != '\0' ? version : "one that does not say");
}

static void put_report(struct node_report *report, void *arg)
{
    struct agent *a = arg;
    struct local_vm *vm;
    host_facts_read(a->data_dir, &a->facts, NULL); /* where it fails, those of the last time hold */
    OBJECT_TEXT(node_report, report, host, a->identity.id);
    OBJECT_TEXT(node_report, report, name, a->identity.name);
    OBJECT_TEXT(node_report, report, address, a->identity.address);
    OBJECT_TEXT(node_report, report, boot_id, a->facts.boot_id);
    OBJECT_SET(node_report, report, generation, a->generation);
    if (a->arming != 0) /* not told: what an agent before us has carried out holds */
        OBJECT_SET(node_report, report, arming, a->arming);
    if (a->vm_context.down)
        OBJECT_SET(node_report, report, going_down, true);
    if (a->left)
        OBJECT_SET(node_report, report, leaving, true);
    OBJECT_SET(node_report, report, cluster_epoch, MAX(a->identity.epoch, 1u));
    OBJECT_SET(node_report, report, cpus, a->facts.cpus);
    OBJECT_SET(node_report, report, memory_bytes, a->facts.memory_bytes);
    OBJECT_SET(node_report, report, disk_bytes, a->facts.disk_bytes);
    OBJECT_TEXT(node_report, report, kvm, a->facts.kvm);
    OBJECT_TEXT(node_report, report, version, AGENT_VERSION);
    put_vmm_version(a, report);
    OBJECT_TEXT(node_report, report, isolation, a->isolation);
    OBJECT_SET(node_report, report, cpu_baseline, a->cpu_baseline);
    object_mark(&node_report_desc, report, "vms");
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        if (vm_arriving(vm) == NULL) /* not this host's yet: to be forgotten, in the controllers' eyes */
            vm_put_seen(vm, OBJECT_ADD(node_report, report, vms));
    agent_tasks_put(a, report);
    agent_images_put_seen(a, report);
    pool_watch_put(&a->pools, report);
    agent_volumes_put(a, report);
    OBJECT_SET(node_report, report, rbd_pools, true);
    OBJECT_SET(node_report, report, rbd_images, true);
    OBJECT_SET(node_report, report, shared_arrivals, true);
    OBJECT_SET(node_report, report, replica_pools, true);
    OBJECT_SET(node_report, report, replica_volumes, true);
    OBJECT_SET(node_report, report, postcopy, true);
    bool cut = report_bound(report, REPORT_BYTES_MAX);
    if (cut && !a->report_cut)
        log_warning("report-cut", "bytes_max=%u: reasons are shortened, and what tasks came to is told later", REPORT_BYTES_MAX);
    a->report_cut = cut;
}

static void carry_out(struct agent *a, struct local_vm *vm, const struct plan_change *change, uint64_t index)
{
    switch (change->kind) {
    case PLAN_ACCEPT:
        if (vm != NULL && vm_is_gone(vm)) { /* deleted once, wanted again under a new epoch */
            if (agent_migrations_hold(a, vm)) { /* which knows it by its address */
                a->ask_again = true;
                break;
            }
            drop_vm(a, vm);
            vm = NULL;
        }
        if (vm != NULL) {
            vm_lease_confirm(vm, a->generation);
            vm_give_order(vm, change->order, index);
            break;
        }
        vm = change->missing ? vm_create_missing(&a->vm_context, change->order, index) : vm_create(&a->vm_context, change->order, index);
        vm_lease_confirm(vm, a->generation);
        map_put(&a->vms, vm_id(vm), vm);
        break;
    case PLAN_KEEP:
        vm_lease_confirm(vm, a->generation);
        vm_give_order(vm, change->order, index);
        break;
    case PLAN_REFUSE:
        log_warning("order-refused", "vm=%s epoch=%llu generation=%llu why=\"%s\"", change->order->name,
                    (unsigned long long)change->order->epoch, (unsigned long long)change->order->generation,
                    change->why);
        break;
    case PLAN_LATER:
        a->ask_again = true;
        break;
    case PLAN_FORGET:
        vm_forget(vm, change->nobodys);
        break;
    case PLAN_DROP:
        if (!agent_migrations_hold(a, vm)) /* else with the next answer */
            drop_vm(a, vm);
        break;
    case PLAN_HALT:
        vm_halt(vm);
        break;
    case PLAN_ORPHAN:
        break;
    }
}

/* ---- the host's lease ---- */

static void lease_changed(void *arg)
{
    struct agent *a = arg;
    struct local_vm *vm;
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        vm_lease(vm);
}

static uint64_t lease_epoch(void *arg)
{
    struct agent *a = arg;
    return MAX(a->identity.epoch, UINT64_C(1));
}

/* What the orders say of the lease, once they have been carried out: only then may it be reported as done. */
static void obey_lease(struct agent *a, const struct node_orders *orders)
{
    if (a->vm_context.disarmed != orders->disarmed)
        log_info("lease-arming", "armed=%s", orders->disarmed ? "no" : "yes");
    a->vm_context.disarmed = orders->disarmed;
    a->shutdown_s = orders->shutdown_timeout_s;
    agent_lease_generation(&a->lease, orders->generation);
    lease_changed(a);
    if (a->arming != orders->arming && a->session != NULL)
        session_poke(a->session);
    a->arming = orders->arming;
}

static bool orders_have(const struct node_orders *orders, const char *id)
{
    const struct vm_order *all = orders->vms.items;
    for (size_t i = 0; i < orders->vms.count; i++)
        if (strcmp(all[i].id, id) == 0)
            return true;
    return false;
}

static void leave_end(struct agent *a)
{
    void (*done)(void *arg) = a->leave_done;
    a->leave_done = NULL;
    uv_timer_stop(&a->leave_timer);
    if (done != NULL)
        done(a->leave_arg);
}

static void leave_tick(uv_timer_t *timer)
{
    struct agent *a = timer->data;
    if (!a->left && a->session != NULL) {
        a->left = true;
        session_move(a->session, session_controller(a->session));
    }
    if (++a->leave_ticks >= AGENT_LEAVE_TICKS_MAX) {
        log_warning("agent-leaves", "told=no why=\"no controller has answered\"");
        leave_end(a);
    }
}

/* VMs that live still; what waits for a migration to here is not counted: that is over with the host. */
static unsigned guests_on(const struct agent *a)
{
    const struct local_vm *vm;
    unsigned count = 0;
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        count += vm_has_process(vm) && vm_arriving(vm) == NULL;
    return count;
}

static void down_tick(uv_timer_t *timer)
{
    struct agent *a = timer->data;
    unsigned on = guests_on(a);
    /* The plug is pulled at that time, and who does not end is killed VM_STOP_MS later. */
    if (on > 0 && uv_now(a->loop) < a->vm_context.down_until_ms + VM_STOP_MS + AGENT_LEAVE_HOLD_MS)
        return;
    log_info("agent-leaves", "generation=%llu guests=%u", (unsigned long long)a->generation, on);
    a->vm_context.leaving = true;
    lease_changed(a);
    uv_timer_start(&a->leave_timer, leave_tick, AGENT_LEAVE_HOLD_MS, AGENT_LEAVE_HOLD_MS);
}

void agent_leave(struct agent *a, void (*done)(void *arg), void *arg)
{
    struct local_vm *vm;
    unsigned seconds = a->shutdown_s != 0 ? a->shutdown_s : AGENT_SHUTDOWN_S;
    log_info("host-goes-down", "guests=%u seconds=%u", guests_on(a), seconds);
    a->vm_context.down_until_ms = uv_now(a->loop) + seconds * UINT64_C(1000);
    a->vm_context.down = true;
    a->leave_done = done;
    a->leave_arg = arg;
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        vm_go_down(vm);
    if (a->session != NULL)
        session_poke(a->session);
    uv_timer_start(&a->leave_timer, down_tick, AGENT_DOWN_LOOK_MS, AGENT_DOWN_LOOK_MS);
}

static void learn_relocate(struct agent *a, const struct node_orders *orders)
{
    struct local_vm *vm;
    struct map may = {0};
    for (size_t i = 0; i < orders->relocate.count; i++)
        map_put(&may, orders->relocate.items[i], orders->relocate.items[i]);
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        vm_may_relocate(vm, map_get(&may, vm_id(vm)) != NULL);
    map_finish(&may);
}

static void obey(const struct node_orders *orders, void *arg)
{
    struct agent *a = arg;
    if (a->left) { /* the answer to the report that said so */
        leave_end(a);
        return;
    }
    size_t count = 0, have_count = a->vms.count;
    CLEANUP_FREE struct plan_have *have = xcalloc(have_count + 1, sizeof(*have));
    CLEANUP_FREE struct local_vm **vms = xcalloc(have_count + 1, sizeof(struct local_vm *));
    CLEANUP_FREE struct plan_change *changes = xcalloc(have_count + orders->vms.count + 1, sizeof(*changes));
    struct local_vm *vm;
    if (!agent_plan_answer_ok(orders, a->generation)) {
        log_warning("orders-refused", "generation=%llu known=%llu", (unsigned long long)orders->generation,
                    (unsigned long long)a->generation);
        return;
    }
    a->generation = orders->generation;
    agent_network_learn(a, orders);
    agent_images_learn(a, orders);
    pool_watch_learn(&a->pools, &orders->pools);
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;) {
        if (vm_arriving(vm) != NULL && !orders_have(orders, vm_id(vm)))
            continue; /* what becomes of it, the migration's own order says */
        vms[count] = vm;
        have[count++] = (struct plan_have){
            .id = vm_id(vm),
            .order = vm_order_of(vm),
            .index = vm_order_index(vm),
            .removing = vm_is_removing(vm),
            .gone = vm_is_gone(vm),
            .astray = vm_is_astray(vm),
        };
    }
    size_t n = agent_plan_orders(have, count, orders, changes);
    for (size_t i = 0; i < n; i++)
        carry_out(a, changes[i].have == PLAN_NEW ? NULL : vms[changes[i].have], &changes[i], orders->index);
    learn_relocate(a, orders);
    agent_volumes_obey(a, orders);
    agent_tasks_obey(a, orders);
    obey_lease(a, orders);
    agent_migrations_obey(a, orders);
    agent_replicas_obey(a, orders);
}

static int identity_save(const struct agent *a, struct error *err)
{
    struct bytes_writer out = {.data = NULL};
    CLEANUP_FREE char *path = xasprintf("%s/identity.json", a->data_dir);
    OBJECT_ENCODE(node_identity, &a->identity, &out);
    int r = file_write_atomic(path, out.data, out.size, 0644, err);
    bytes_writer_finish(&out);
    return r;
}

static void controllers_changed(const struct string_list *controllers, void *arg)
{
    struct agent *a = arg;
    struct error err = {.code = 0};
    struct node_identity update = {.head = {0}};
    update.controllers = *controllers; /* borrowed: merge copies */
    object_mark(&node_identity_desc, &update, "controllers");
    object_merge(&node_identity_desc, &a->identity, &update);
    agent_lease_controllers(&a->lease, &a->identity.controllers);
    if (identity_save(a, &err) < 0)
        log_warning("identity-save", "error=\"%s, ignoring\"", err.text);
}

/* A cluster that was rebuilt from one controller has a higher epoch; from then on those that it lost are not obeyed. The
 * index of orders counts anew with it: what was known by the old count must not stand in the way. */
static int accept_orders(const struct node_orders *orders, void *arg, struct error *err)
{
    struct agent *a = arg;
    struct local_vm *vm;
    uint64_t mine = MAX(a->identity.epoch, 1u), theirs = MAX(orders->cluster_epoch, 1u);
    if (theirs < mine)
        return error_set(err, -ESTALE, ERROR_STALE,
                         "it is of epoch %llu of the cluster, which was recovered without it and is at epoch %llu",
                         (unsigned long long)theirs, (unsigned long long)mine);
    if (theirs == mine)
        return 0;
    log_info("cluster-epoch", "from=%llu to=%llu", (unsigned long long)mine, (unsigned long long)theirs);
    agent_replicas_new_cluster_epoch(a); /* first: with the epoch known it would not be done again after a crash */
    OBJECT_SET(node_identity, &a->identity, epoch, theirs);
    int r = identity_save(a, err); /* refused where it is not kept: a restart must not forget it */
    if (r < 0) {
        OBJECT_SET(node_identity, &a->identity, epoch, mine);
        return r;
    }
    a->vm_context.cluster_epoch = theirs;
    a->vm_context.settles_until_ms = uv_now(a->loop) + VM_SETTLE_MS;
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        vm_new_cluster_epoch(vm);
    agent_tasks_new_cluster_epoch(a);
    a->generation = 0; /* of the lease: the last one may be lost, and a lower one be the newest */
    return 0;
}

/* Downloads progress without any state changing: tell of it now and then. */
static void progress_tick(uv_timer_t *timer)
{
    struct agent *a = timer->data;
    struct local_vm *vm;
    agent_network_tick(a);
    agent_images_tick(a);
    agent_volumes_tick(a);
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;) {
        vm_look_at_servers(vm);
        vm_look_at_pools(vm);
    }
    bool news = agent_tasks_running(a) || pool_watch_news(&a->pools);
    for (size_t i = 0; !news && (vm = map_next(&a->vms, &i)) != NULL;)
        news = vm_is_fetching(vm);
    if (news)
        session_poke(a->session);
}

/* ---- start ---- */

static int lock_data_dir(struct agent *a, struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/agent.lock", a->data_dir);
    a->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (a->lock_fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    if (flock(a->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return error_set(err, -errno, ERROR_IN_USE, "another agent runs on %s", a->data_dir);
    return 0;
}

static int load_identity(struct agent *a, struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/identity.json", a->data_dir);
    CLEANUP_FREE char *ca = xasprintf("%s/ca.pem", a->data_dir);
    CLEANUP_FREE char *cert = xasprintf("%s/cert.pem", a->data_dir);
    CLEANUP_FREE char *key = xasprintf("%s/key.pem", a->data_dir);
    CLEANUP_FREE char *text = NULL;
    size_t size;
    int r = file_read(path, AGENT_JSON_BYTES_MAX, &text, &size, err);
    if (r == -ENOENT)
        return error_set(err, r, ERROR_NOT_INITIALIZED, "%s belongs to no cluster yet; use drover-agent join",
                         a->data_dir);
    if (r == 0)
        r = OBJECT_DECODE(node_identity, text, size, OBJECT_STORED, &a->identity, err);
    if (r == 0 && (a->identity.role != role_HOST || a->identity.controllers.count == 0))
        r = error_set(err, -EINVAL, ERROR_INVALID, "it is not of a host, or names no controllers");
    if (r < 0) {
        error_prefix(err, "%s: ", path);
        return r;
    }
    return tls_context_load(ca, cert, key, &a->tls, err);
}

static void load_vms(struct agent *a)
{
    struct dirent *entry;
    const char *rule;
    vm_files_remove_leftovers(&a->vm_context.places);
    DIR *d = opendir(a->vms_dir);
    while (d != NULL && (entry = readdir(d)) != NULL) {
        struct error err = {.code = 0};
        struct local_vm *vm;
        if (!text_format_ok(FORMAT_id, entry->d_name, &rule))
            continue;
        if (vm_load(&a->vm_context, entry->d_name, &vm, &err) == 0)
            map_put(&a->vms, vm_id(vm), vm);
        else
            log_error("vm-unreadable", "id=%s error=\"%s, ignoring\"", entry->d_name, err.text);
    }
    if (d != NULL)
        closedir(d);
}

/* Where control sockets are: in the data directory, or where their paths would not fit into sun_path there, in a
 * directory of /run that no other data directory shares. */
static char *make_run_dir(const char *data_dir)
{
    struct vm_places places = {.run_dir = xasprintf("%s/run", data_dir)};
    char path[VM_FILES_CONTROL_PATH_SIZE];
    uint8_t hash[SHA256_DIGEST_LENGTH];
    char *dir = (char *)places.run_dir;
    if (vm_files_control_path(&places, "00000000-0000-4000-8000-000000000000", path, NULL) == 0)
        return dir;
    free(dir);
    SHA256((const uint8_t *)data_dir, strlen(data_dir), hash);
    return xasprintf("/run/drover-agent-%02x%02x%02x%02x%02x%02x", hash[0], hash[1], hash[2], hash[3], hash[4],
                     hash[5]);
}

/* Lease pages are in /run, which is memory: a slow or full disk must not keep a deadline from a VMM. */
static char *make_lease_dir(const char *data_dir)
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    if (geteuid() != 0)
        return xasprintf("%s/leases", data_dir);
    SHA256((const uint8_t *)data_dir, strlen(data_dir), hash);
    return xasprintf("/run/drover-lease-%02x%02x%02x%02x%02x%02x", hash[0], hash[1], hash[2], hash[3], hash[4], hash[5]);
}

/* What VMMs get of the walls that there are; each that is missing is told with its reason, here and in the host's status. */
static uint32_t isolation_choose(struct agent *a, uint32_t user_base)
{
    const char *why = user_base == 0 ? "--vmm-uid-base 0" : geteuid() != 0 ? "the agent is not root" : NULL;
    vmm_cgroups_open(NULL, VMM_CGROUP_NAME, &a->cgroups);
    if (why == NULL)
        snprintf(a->isolation, sizeof(a->isolation), "user, files, system calls, %s", a->cgroups.state);
    else
        snprintf(a->isolation, sizeof(a->isolation), "system calls, %s, no user and files of their own: %s",
                 a->cgroups.state, why);
    if (why == NULL && a->cgroups.complete)
        log_info("isolation", "vmms=\"%s\"", a->isolation);
    else
        log_warning("isolation", "vmms=\"%s\"", a->isolation);
    return why == NULL ? user_base : 0;
}

/* The word in brackets is the one that holds (Documentation/admin-guide/mm/transhuge.rst). */
static bool memory_is_shared(enum agent_shared_memory mode)
{
    CLEANUP_FREE char *text = NULL;
    size_t size;
    if (mode != AGENT_SHARED_AUTO)
        return mode == AGENT_SHARED_ALWAYS;
    if (file_read("/sys/kernel/mm/transparent_hugepage/shmem_enabled", 4096, &text, &size, NULL) < 0)
        return false;
    return strstr(text, "[never]") == NULL && strstr(text, "[deny]") == NULL;
}

static int make_places(struct agent *a, const struct agent_options *options, struct error *err)
{
    int r;
    a->vms_dir = xasprintf("%s/vms", a->data_dir);
    a->run_dir = make_run_dir(a->data_dir);
    a->images_dir = xasprintf("%s/images", a->data_dir);
    a->replicas_dir = xasprintf("%s/replicas", a->data_dir);
    a->lease_dir = make_lease_dir(a->data_dir);
    if ((r = file_make_directories(a->lease_dir, 0711, err)) < 0)
        return r;
    if ((r = file_make_directories(a->vms_dir, 0700, err)) < 0 ||
        (r = file_make_directories(a->run_dir, 0700, err)) < 0)
        return r;
    a->vm_context = (struct vm_context){
        .loop = a->loop,
        .places = {.vms_dir = a->vms_dir,
                   .run_dir = a->run_dir,
                   .images_dir = a->images_dir,
                   .replicas_dir = a->replicas_dir,
                   .lease_dir = a->lease_dir,
                   .user_base = isolation_choose(a, options->vmm_user_base),
                   .make_bridges = options->make_bridges,
                   .shared_memory = memory_is_shared(options->shared_memory),
                   .cgroups = &a->cgroups,
                   .network = a->network},
        .vmm_path = a->vmm_path,
        .boot_id = a->facts.boot_id,
        .cluster_epoch = MAX(a->identity.epoch, UINT64_C(1)),
        .lease = &a->lease.holder,
        .pools = &a->pools,
        .pool_works = &a->pool_works,
        .changed = vm_changed,
        .arg = a,
    };
    return 0;
}

static int start_parts(struct agent *a, const struct agent_options *options, struct error *err)
{
    int r;
    if ((r = lock_data_dir(a, err)) < 0 || (r = load_identity(a, err)) < 0 ||
        (r = host_facts_read(a->data_dir, &a->facts, err)) < 0 ||
        (r = agent_network_start(a, err)) < 0 || (r = make_places(a, options, err)) < 0 ||
        (r = http_client_create(a->loop, &a->http, err)) < 0 ||
        (r = image_cache_create(a->loop, a->images_dir, vmm_user_of_web(a->vm_context.places.user_base), &a->images, err)) < 0)
        return r;
    a->vm_context.http = a->http;
    a->vm_context.images = a->images;
    if ((r = agent_images_start(a, err)) < 0)
        return r;
    load_vms(a);
    agent_tasks_clean(a);
    agent_migrations_start(a);
    agent_network_loaded(a);
    return agent_server_start(a, options->listen != NULL ? options->listen : a->identity.address, err);
}

static void start_session(struct agent *a)
{
    CLEANUP_FREE char *peer = xasprintf("spiffe://drover/%s/controller/", a->identity.cluster_id);
    const struct session_options options = {
        .loop = a->loop,
        .http = a->http,
        .tls = a->tls,
        .peer_prefix = peer,
        .controllers = &a->identity.controllers,
        .put_report = put_report,
        .accept = accept_orders,
        .obey = obey,
        .controllers_changed = controllers_changed,
        .arg = a,
    };
    const struct agent_lease_options lease = {
        .loop = a->loop,
        .http = a->http,
        .tls = a->tls,
        .peer_prefix = peer,
        .host = a->identity.id,
        .cluster_epoch = lease_epoch,
        .changed = lease_changed,
        .arg = a,
    };
    a->session = session_start(&options);
    agent_lease_start(&a->lease, &lease);
    a->lease.session = a->session;
    a->lease_started = true;
    agent_lease_controllers(&a->lease, &a->identity.controllers);
    uv_timer_start(&a->progress, progress_tick, AGENT_PROGRESS_MS, AGENT_PROGRESS_MS);
}

static void agent_free(struct agent *a)
{
    map_finish(&a->vms);
    map_finish(&a->tasks.all);
    pool_watch_finish(&a->pools);
    agent_migrations_free(a);
    agent_boots_free(a);
    host_network_destroy(a->network);
    vmm_cgroups_close(&a->cgroups);
    OBJECT_CLEAR(node_identity, &a->identity);
    agent_images_finish(a);
    tls_context_unref(a->tls);
    if (a->lock_fd >= 0)
        close(a->lock_fd);
    free(a->data_dir);
    free(a->vms_dir);
    free(a->run_dir);
    free(a->images_dir);
    free(a->replicas_dir);
    free(a->lease_dir);
    free(a->vmm_path);
    free(a);
}

int agent_start(uv_loop_t *loop, const struct agent_options *options, struct agent **ret_agent, struct error *err)
{
    struct agent *a = NEW(struct agent);
    a->loop = loop;
    a->lock_fd = -1;
    a->data_dir = xstrdup(options->data_dir);
    a->vmm_path = xstrdup(options->vmm_path);
    a->cpu_baseline = cpu_baseline_ask(a->vmm_path);
    list_init(&a->consoles);
    image_serve_init(&a->image_serves);
    uv_timer_init(loop, &a->progress);
    a->progress.data = a;
    uv_timer_init(loop, &a->leave_timer);
    a->leave_timer.data = a;
    agent_drill_init(a);
    int r = start_parts(a, options, err);
    if (r < 0) {
        agent_stop(a, NULL, NULL);
        uv_run(loop, UV_RUN_DEFAULT);
        return r;
    }
    start_session(a);
    log_info("agent-started", "host=%s id=%s vms=%zu kvm=%s", a->identity.name, a->identity.id, a->vms.count,
             a->facts.kvm);
    *ret_agent = a;
    return 0;
}

/* ---- end: session and server first, then VMs, then what VMs use ---- */

static void stop_last(struct agent *a);

void agent_part_closed(void *arg)
{
    struct agent *a = arg;
    a->closing--;
    if (a->closing == 0 && a->stopping)
        stop_last(a);
}

static void handle_closed(uv_handle_t *handle)
{
    agent_part_closed(handle->data);
}

static void stop_last(struct agent *a)
{
    struct image_cache *images = a->images;
    struct http_client *http = a->http;
    a->images = NULL;
    a->http = NULL;
    if (images != NULL || http != NULL) {
        a->closing = (images != NULL) + (http != NULL);
        if (images != NULL)
            image_cache_close(images, agent_part_closed, a);
        if (http != NULL)
            http_client_close(http, agent_part_closed, a);
        return;
    }
    void (*stopped)(void *arg) = a->stopped;
    void *arg = a->stopped_arg;
    agent_free(a);
    if (stopped != NULL)
        stopped(arg);
}

void agent_stop(struct agent *a, void (*stopped)(void *arg), void *arg)
{
    struct local_vm *vm;
    a->stopping = true;
    a->stopped = stopped;
    a->stopped_arg = arg;
    a->closing += 2;
    agent_drill_stop(a);
    uv_close((uv_handle_t *)&a->progress, handle_closed);
    uv_close((uv_handle_t *)&a->leave_timer, handle_closed);
    agent_network_stop(a);
    console_bridge_close_all(&a->consoles);
    if (a->server != NULL) {
        a->closing++;
        http_server_stop(a->server, agent_part_closed, a);
        a->server = NULL;
    }
    if (a->lease_started) {
        a->closing++;
        agent_lease_stop(&a->lease, agent_part_closed, a);
    }
    agent_images_stop(a);
    if (a->session != NULL) {
        a->closing++;
        session_stop(a->session, agent_part_closed, a);
        a->session = NULL;
    }
    agent_tasks_stop(a);
    agent_boots_stop(a);
    agent_volumes_stop(a);
    agent_migrations_stop(a);
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;) {
        a->closing++;
        vm_close(vm, agent_part_closed, a);
    }
}
