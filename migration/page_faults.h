/* Guest memory that is not all there yet: whoever touches a lacking page - a processor, a device, the kernel - waits until
 * it has been put into place (userfaultfd(2)). What is neither lacking nor there is zeros.
 *
 *   lacking --touched--> wanted --page_faults_place--> there     the waiting go on
 *      +---------------------- page_faults_place ------^
 *
 * Placing is once for each page: a page that is there is never written again, for the guest may have changed it.
 * Memory of a hugetlb pool cannot do this: its pages come and go whole.
 *
 * Threads: page_faults_place and _lacking from any; _next and _wanted_again from one. */
#ifndef MIGRATION_PAGE_FAULTS_H
#define MIGRATION_PAGE_FAULTS_H

#include "common/error.h"
#include "migration/guest.h"

struct page_faults;

/* A descriptor for page_faults_start, or negative errno with words. The kernel gives one for faults in the kernel (KVM's
 * are such) only to the privileged, so a program that gives its privileges up opens it before. @user_only: one that knows
 * only this program's own faults, which anybody may have (tests). */
int page_faults_open(bool user_only, struct error *err);

/* From now on, until page_faults_finish, on @regions of this process: what @lack names (a bit for each page, owned by the
 * caller until then; NULL: nothing of that region) is dropped. @fd is not taken. */
int page_faults_start(int fd, const struct guest_region *regions, size_t count, uint64_t *const lack[GUEST_REGIONS_MAX],
                      struct page_faults **ret_faults, struct error *err);
/* Nothing is watched any more, and nobody waits: from any thread, at most once, and page_faults_finish still follows. */
void page_faults_let_go(struct page_faults *f);
/* Nothing is watched any more. With pages still lacking those who wait see zeros: then the process has to have ended them
 * before. NULL is allowed. */
void page_faults_finish(struct page_faults *f);

/* Pages that are lacking still. */
uint64_t page_faults_lacking(const struct page_faults *f);
/* Put @pages pages from @page on into place where they are lacking: @data, or zeros (NULL). */
int page_faults_place(struct page_faults *f, size_t region, uint64_t page, uint64_t pages, const void *data,
                      struct error *err);
/* Wait up to @timeout_ms for somebody to touch a lacking page that nobody has touched before: 1, and which; 0: none. */
int page_faults_next(struct page_faults *f, int timeout_ms, size_t *ret_region, uint64_t *ret_page, struct error *err);
/* All that were touched and are lacking still: @each for every one of them, until it answers below 0. */
int page_faults_wanted_again(struct page_faults *f, int (*each)(void *arg, size_t region, uint64_t page), void *arg);

#endif
