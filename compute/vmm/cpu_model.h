/* CPU models: what of the host's processor a guest gets to see.
 *
 *   host              all that KVM offers on this host (the default). Moves only to hosts that offer the same or
 * more. x86-64-v1 ... v4  the same CPUID on every host of a vendor, so that a VM moves freely among them; features
 * beyond the level stay hidden (cpu_features.def).
 *
 * A model hides, it does not protect: a guest that tries an instruction which CPUID does not show may find it
 * working. Every model keeps the host's vendor; a VM never moves between Intel and AMD. Pure functions on tables of
 * CPUID entries. */
#ifndef COMPUTE_VMM_CPU_MODEL_H
#define COMPUTE_VMM_CPU_MODEL_H

#include "common/error.h"
#include "compute/vmm/kvm.h"

#define CPU_MODEL_DEFAULT "host"

struct cpu_model; /* a row of the table in cpu_model.c */

/* @name NULL: the default. -EINVAL listing those that there are. */
int cpu_model_find(const char *name, const struct cpu_model **ret_model, struct error *err);
const char *cpu_model_name(const struct cpu_model *model);
/* Cut @cpuid, which is what KVM offers, down to the model. -ENOTSUP naming the features that the host lacks. */
int cpu_model_apply(const struct cpu_model *model, struct kvm_cpuid2 *cpuid, struct error *err);
/* The name of the highest baseline that a host which offers @cpuid can be; CPU_MODEL_DEFAULT where it can be none. */
const char *cpu_model_highest(const struct kvm_cpuid2 *cpuid);
/* Does @here, what this host could show a guest, hold everything that @guest was shown? -ENOTSUP naming what is
 * missing. */
int cpu_model_check_subset(const struct kvm_cpuid2 *guest, const struct kvm_cpuid2 *here, struct error *err);

#endif
