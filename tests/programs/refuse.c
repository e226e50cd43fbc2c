/* Preloaded: a file system below $REFUSE_UNDER that answers the calls named in $REFUSE ("chmod=1 rename_dir=38 fsync=22", numbers
   of errno.h) with an error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int refused(const char *call) {
    const char *list = getenv("REFUSE"), *at = list;
    size_t n = strlen(call);
    while (at && (at = strstr(at, call))) {
        if ((at == list || at[-1] == ' ') && at[n] == '=') return atoi(at + n + 1);
        at += n;
    }
    return 0;
}
static int below(const char *path) {
    const char *under = getenv("REFUSE_UNDER");
    char full[PATH_MAX * 2], cwd[PATH_MAX];
    if (!under || !path) return 0;
    if (path[0] != '/') { snprintf(full, sizeof full, "%s/%s", getcwd(cwd, sizeof cwd), path); path = full; }
    return strncmp(path, under, strlen(under)) == 0;
}
static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}
static int is_dir(const char *path) { struct stat s; return stat(path, &s) == 0 && S_ISDIR(s.st_mode); }
#define NEXT(name) dlsym(RTLD_NEXT, name)
#define DENY(call) do { int e = refused(call); if (e) { errno = e; return -1; } } while (0)

int chmod(const char *p, mode_t m) { if (below(p)) DENY("chmod"); return ((int (*)(const char *, mode_t))NEXT("chmod"))(p, m); }
int fchmod(int fd, mode_t m) { if (below_fd(fd)) DENY("chmod"); return ((int (*)(int, mode_t))NEXT("fchmod"))(fd, m); }
int fchmodat(int d, const char *p, mode_t m, int f) {
    if (below(p)) DENY("chmod");
    return ((int (*)(int, const char *, mode_t, int))NEXT("fchmodat"))(d, p, m, f);
}
int fsync(int fd) { if (below_fd(fd)) DENY("fsync"); return ((int (*)(int))NEXT("fsync"))(fd); }
int fdatasync(int fd) { if (below_fd(fd)) DENY("fsync"); return ((int (*)(int))NEXT("fdatasync"))(fd); }
int rename(const char *a, const char *b) {
    if (below(a) || below(b)) { if (is_dir(a)) DENY("rename_dir"); else DENY("rename_file"); }
    return ((int (*)(const char *, const char *))NEXT("rename"))(a, b);
}
int flock(int fd, int op) { if (below_fd(fd)) DENY("flock"); return ((int (*)(int, int))NEXT("flock"))(fd, op); }
int utimensat(int d, const char *p, const struct timespec t[2], int f) {
    if (below(p)) DENY("utime");
    return ((int (*)(int, const char *, const struct timespec *, int))NEXT("utimensat"))(d, p, t, f);
}
int link(const char *a, const char *b) { if (below(b)) DENY("link"); return ((int (*)(const char *, const char *))NEXT("link"))(a, b); }
int symlink(const char *a, const char *b) { if (below(b)) DENY("symlink"); return ((int (*)(const char *, const char *))NEXT("symlink"))(a, b); }
int chown(const char *p, uid_t u, gid_t g) { if (below(p)) DENY("chown"); return ((int (*)(const char *, uid_t, gid_t))NEXT("chown"))(p, u, g); }
