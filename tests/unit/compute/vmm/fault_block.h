/* A disk that fails as it is told: a filter over another block. The next `fail_count` requests of the kinds in `fail_ops`
 * end with `fail_result`, untouched. */
#ifndef TESTS_FAULT_BLOCK_H
#define TESTS_FAULT_BLOCK_H

#include "block/block.h"
#include "compute/vmm/io_loop.h"

struct fault_block {
    struct block block;
    struct block *below; /* owned */
    struct io_timer tell;
    struct io_loop *loop;
    struct list failing; /* struct block_request */
    unsigned fail_count, fail_ops /* bit: enum block_op */;
    int fail_result;
    unsigned failed;
};

struct fault_pass {
    struct block_request below;
    struct block_request *above;
    struct fault_block *fault;
};

static inline void fault_passed(struct block_request *r, int result)
{
    struct fault_pass *p = CONTAINER_OF(r, struct fault_pass, below);
    p->above->result = result;
    block_complete(&p->fault->block, p->above);
    free(p);
}

static inline void fault_tell(void *arg)
{
    struct fault_block *f = arg;
    struct list failing;
    list_init(&failing);
    list_take(&failing, &f->failing);
    while (!list_empty(&failing)) {
        struct block_request *r = LIST_ENTRY(failing.next, struct block_request, link);
        list_remove(&r->link);
        block_complete(&f->block, r);
    }
}

static inline int fault_submit(struct block *b, struct block_request *r)
{
    struct fault_block *f = CONTAINER_OF(b, struct fault_block, block);
    if (f->fail_count > 0 && (f->fail_ops >> r->op & 1)) {
        f->fail_count--;
        f->failed++;
        r->result = f->fail_result;
        list_append(&f->failing, &r->link);
        io_timer_arm(f->loop, &f->tell, 0);
        return 0;
    }
    struct fault_pass *p = NEW(struct fault_pass);
    p->below = *r;
    p->below.done = fault_passed;
    p->above = r;
    p->fault = f;
    int code = block_submit(f->below, &p->below);
    if (code < 0)
        free(p);
    return code;
}

static inline void fault_drain(struct block *b)
{
    struct fault_block *f = CONTAINER_OF(b, struct fault_block, block);
    while (b->in_flight > 0) {
        fault_tell(f);
        block_drain(f->below);
    }
    io_timer_cancel(&f->tell);
}

static inline void fault_close(struct block *b)
{
    struct fault_block *f = CONTAINER_OF(b, struct fault_block, block);
    io_timer_cancel(&f->tell);
    block_close(f->below);
    free(f);
}

static inline struct fault_block *fault_block_create(struct block *below, struct io_loop *loop)
{
    static const struct block_ops ops = {.submit = fault_submit, .drain = fault_drain, .close = fault_close};
    struct fault_block *f = NEW(struct fault_block);
    f->block = *below;
    f->block.ops = &ops;
    f->block.may_submit = NULL;
    f->below = below;
    f->loop = loop;
    list_init(&f->failing);
    io_timer_init(&f->tell, fault_tell, f);
    return f;
}

#endif
