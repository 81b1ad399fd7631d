/* Plays NVIDIA's management library for tests on machines without a GPU. NO GPU WAS MEASURED WITH IT.
 *
 * What it answers stands in the file that the variable FAKE_NVML names, a line "KEY VALUE" for each figure, read anew at
 * each question; see tests/support/fake_nvml.py for the keys. Without a file there is no driver. The names, types and
 * error codes are those of NVML's reference.
 * Build: cc -shared -fPIC -O2 -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 fake_nvml.c */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NO_DRIVER = 9 };

typedef struct { unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance; } process_t;
typedef struct { unsigned int pid; unsigned long long at_us; unsigned int sm, memory, encoder, decoder; } used_t;
typedef struct { unsigned int gpu, memory; } rates_t;

/* The value of "gpuN.NAME", or of NAME for a negative gpu; 0 if there is none. */
static int text(long gpu, const char *name, char *value, size_t size) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char key[128], line[1024];
    int found = 0;
    if (!file) return 0;
    if (gpu < 0) snprintf(key, sizeof key, "%s ", name);
    else snprintf(key, sizeof key, "gpu%ld.%s ", gpu, name);
    while (!found && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0) {
            line[strcspn(line, "\n")] = 0;
            snprintf(value, size, "%s", line + strlen(key));
            found = 1;
        }
    fclose(file);
    return found;
}

static int number(long gpu, const char *name, long long *value) {
    char found[64];
    if (!text(gpu, name, found, sizeof found)) return 0;
    *value = atoll(found);
    return 1;
}

static long long number_or(long gpu, const char *name, long long otherwise) {
    number(gpu, name, &otherwise);
    return otherwise;
}

/* Handles are numbers from 1. */
static long gpu_of(void *handle) { return (long)handle - 1; }

/* A figure of a GPU, its error if the file names one ("gpu0.NAME.error 15"), or "not supported". */
static int figure(void *handle, const char *name, long long *value) {
    char key[96];
    long long lost = number_or(gpu_of(handle), "error", 0), error;
    if (lost) return (int)lost;
    snprintf(key, sizeof key, "%s.error", name);
    error = number_or(gpu_of(handle), key, 0);
    if (error) return (int)error;
    return number(gpu_of(handle), name, value) ? SUCCESS : NOT_SUPPORTED;
}

static int figure32(void *handle, const char *name, unsigned int *result) {
    long long value = 0;
    int code = figure(handle, name, &value);
    if (code == SUCCESS) *result = (unsigned int)value;
    return code;
}

int nvmlInitWithFlags(unsigned int flags) {
    char path[8];
    (void)flags;
    if (!getenv("FAKE_NVML") || !text(-1, "count", path, sizeof path)) return NO_DRIVER;
    return (int)number_or(-1, "init.error", SUCCESS);
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) { return code == NO_DRIVER ? "Driver Not Loaded" : "Error of the fake driver"; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)number_or(-1, "count", 0);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    long long error = number_or(index, "handle.error", SUCCESS);
    if (index >= number_or(-1, "count", 0)) return INVALID_ARGUMENT;
    *handle = (void *)((long)index + 1);
    return (int)error;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-fake-%ld", gpu_of(handle));
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned int length) {
    (void)handle;
    snprintf(name, length, "Fake GPU");
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *energy_mj) {
    long long value = 0;
    int code = figure(handle, "energy_mj", &value);
    if (code == SUCCESS) *energy_mj = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned int *power_mw) { return figure32(handle, "power_mw", power_mw); }

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned int *limit_mw) {
    return figure32(handle, "limit_mw", limit_mw);
}

int nvmlDeviceGetPerformanceState(void *handle, unsigned int *state) { return figure32(handle, "pstate", state); }

int nvmlDeviceGetUtilizationRates(void *handle, rates_t *rates) {
    rates->memory = 0;
    return figure32(handle, "busy", &rates->gpu);
}

int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending) {
    *pending = 0;
    return figure32(handle, "mig", current);
}

/* "gpu0.pids 4711 4712" */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, process_t *processes) {
    char pids[512];
    long long error = number_or(gpu_of(handle), "pids.error", 0);
    unsigned int found = 0;
    if (error) return (int)error;
    if (!text(gpu_of(handle), "pids", pids, sizeof pids)) pids[0] = 0;
    for (char *rest = NULL, *pid = strtok_r(pids, " ", &rest); pid; pid = strtok_r(NULL, " ", &rest), found++)
        if (processes && found < *count)
            processes[found] = (process_t){(unsigned int)atoi(pid), 1 << 20, 0xFFFFFFFF, 0xFFFFFFFF};
    if (!processes && found) {
        *count = found;
        return INSUFFICIENT_SIZE;
    }
    *count = found;
    return SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned int *count, process_t *processes) {
    (void)handle;
    (void)processes;
    *count = 0;
    return SUCCESS;
}

/* "gpu0.used 4711:60 4712:20" percent by process, sampled at "gpu0.used_at 123456" us */
int nvmlDeviceGetProcessUtilization(void *handle, used_t *samples, unsigned int *count, unsigned long long since_us) {
    char pairs[512];
    long long error = number_or(gpu_of(handle), "used.error", 0);
    unsigned long long at_us = (unsigned long long)number_or(gpu_of(handle), "used_at", 1);
    unsigned int found = 0;
    if (error) return (int)error;
    if (!text(gpu_of(handle), "used", pairs, sizeof pairs) || at_us <= since_us) return NOT_FOUND;
    for (char *rest = NULL, *pair = strtok_r(pairs, " ", &rest); pair; pair = strtok_r(NULL, " ", &rest), found++)
        if (samples && found < *count)
            samples[found] = (used_t){(unsigned int)atoi(pair), at_us, (unsigned int)atoi(strchr(pair, ':') + 1), 0, 0, 0};
    *count = found;
    return samples ? SUCCESS : INSUFFICIENT_SIZE;
}
