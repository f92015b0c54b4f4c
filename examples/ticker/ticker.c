/* Prints a few ticks, a quarter of a millisecond apart: finer than epoll_wait's milliseconds.
 *
 * epoll_pwait2 is in Linux since 5.11 and in glibc since 2.35. A program that uses it starts on no system that is older, whichever way
 * it is taken: the dynamic linker refuses it there, and linked statically the kernel does. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

int main(void) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) {
        fprintf(stderr, "ticker: epoll_create1: %s\n", strerror(errno));
        return 1;
    }
    for (int tick = 1; tick <= 3; tick++) {
        struct timespec quarter = {.tv_sec = 0, .tv_nsec = 250000};
        struct epoll_event event;
        if (epoll_pwait2(epoll, &event, 1, &quarter, NULL) < 0) {
            fprintf(stderr, "ticker: epoll_pwait2: %s\n", strerror(errno));
            return 1;
        }
        printf("tick %d\n", tick);
    }
    return 0;
}
