/* Scaphandre panics where the kernel has no /proc/modules (small virtual machines). Preloaded, this shows it an
 * empty one. Build: cc -shared -fPIC -O2 -o no_proc_modules.so no_proc_modules.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>

typedef int (*open_function)(const char *, int, mode_t);

static int open_as(const char *symbol, const char *path, int flags, mode_t mode) {
    open_function real = (open_function)dlsym(RTLD_NEXT, symbol);
    return real(strcmp(path, "/proc/modules") == 0 ? "/dev/null" : path, flags, mode);
}

#define REPLACE(name)                                       \
    int name(const char *path, int flags, ...) {            \
        va_list rest;                                       \
        va_start(rest, flags);                              \
        mode_t mode = va_arg(rest, mode_t);                 \
        va_end(rest);                                       \
        return open_as(#name, path, flags, mode);           \
    }

REPLACE(open)
REPLACE(open64)
