/* SPDX-License-Identifier: MIT */
/* See worker.h. The thread is detached: whoever leaves does not wait for the kernel, and what is left is freed there. */
#include "base/worker.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>

#include "base/util.h"

#define MAX_DONE 32u /* in one turn of the loop, which has others to serve */

STAILQ_HEAD(work_list, work);

struct worker {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct work_list todo, done; /* under the lock, as everything below but the event */
	bool leaving;
	bool answering; /* the loop calls done(): it frees the worker if the owner leaves from there */
	bool ended; /* the thread has */
	void (*drop)(struct work *w);
	void (*last)(void *arg);
	void *last_arg;
	int fd; /* an eventfd: the loop has something to call done() for */
	struct event *finished;
};

static void worker_destroy(struct worker *w)
{
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->more);
	if (w->finished)
		event_free(w->finished);
	if (w->fd >= 0)
		close(w->fd);
	free(w);
}

/* The next piece; NULL: the owner left. */
static struct work *next_piece(struct worker *w)
{
	struct work *work;

	pthread_mutex_lock(&w->lock);
	while (STAILQ_EMPTY(&w->todo) && !w->leaving)
		pthread_cond_wait(&w->more, &w->lock);
	work = w->leaving ? NULL : STAILQ_FIRST(&w->todo);
	if (work)
		STAILQ_REMOVE_HEAD(&w->todo, link);
	pthread_mutex_unlock(&w->lock);
	return work;
}

static void piece_done(struct worker *w, struct work *work)
{
	static const uint64_t one = 1;
	bool leaving;

	pthread_mutex_lock(&w->lock);
	leaving = w->leaving;
	if (!leaving) {
		/* It is readable as long as something is there. */
		if (STAILQ_EMPTY(&w->done))
			(void)!write(w->fd, &one, sizeof(one));
		STAILQ_INSERT_TAIL(&w->done, work, link);
	}
	pthread_mutex_unlock(&w->lock);
	if (leaving)
		w->drop(work);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct work *work;
	bool answering;

	while ((work = next_piece(w))) {
		work->run(work);
		piece_done(w, work);
	}
	w->last(w->last_arg);
	pthread_mutex_lock(&w->lock);
	w->ended = true;
	answering = w->answering;
	pthread_mutex_unlock(&w->lock);
	if (!answering)
		worker_destroy(w);
	return NULL;
}

static struct work *take_done(struct worker *w)
{
	struct work *work;
	uint64_t count;

	pthread_mutex_lock(&w->lock);
	work = STAILQ_FIRST(&w->done);
	if (work)
		STAILQ_REMOVE_HEAD(&w->done, link);
	else
		(void)!read(w->fd, &count, sizeof(count)); /* not readable until the next one is put there */
	pthread_mutex_unlock(&w->lock);
	return work;
}

/* Each done() may leave: then there are no more. */
static void on_finished(evutil_socket_t fd, short what, void *arg)
{
	struct worker *w = arg;
	struct work *work;
	bool ended;

	pthread_mutex_lock(&w->lock);
	w->answering = true;
	pthread_mutex_unlock(&w->lock);
	for (unsigned int i = 0; i < MAX_DONE && (work = take_done(w)); i++)
		work->done(work);
	pthread_mutex_lock(&w->lock);
	w->answering = false;
	ended = w->ended;
	pthread_mutex_unlock(&w->lock);
	if (ended)
		worker_destroy(w);
}

/* Signals are the loop's. */
static int start_thread(struct worker *w)
{
	sigset_t all, before;
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	r = pthread_attr_init(&attr);
	if (r)
		return -r;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&thread, &attr, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return -r;
}

int worker_new(struct worker **ret, struct event_base *base)
{
	struct worker *w = calloc(1, sizeof(*w));
	int r = 0;

	if (!w)
		return -ENOMEM;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->more, NULL);
	STAILQ_INIT(&w->todo);
	STAILQ_INIT(&w->done);
	w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->fd < 0)
		r = -errno;
	if (r == 0) {
		w->finished = event_new(base, w->fd, EV_READ | EV_PERSIST, on_finished, w);
		r = !w->finished || event_add(w->finished, NULL) < 0 ? -ENOMEM : start_thread(w);
	}
	if (r < 0) {
		worker_destroy(w);
		return r;
	}
	*ret = w;
	return 0;
}

void worker_add(struct worker *w, struct work *work)
{
	pthread_mutex_lock(&w->lock);
	STAILQ_INSERT_TAIL(&w->todo, work, link);
	pthread_cond_signal(&w->more);
	pthread_mutex_unlock(&w->lock);
}

void worker_add_first(struct worker *w, struct work *work)
{
	pthread_mutex_lock(&w->lock);
	STAILQ_INSERT_HEAD(&w->todo, work, link);
	pthread_cond_signal(&w->more);
	pthread_mutex_unlock(&w->lock);
}

struct worker *worker_leave(struct worker *w, void (*drop)(struct work *w), void (*last)(void *arg), void *arg)
{
	struct work_list left = STAILQ_HEAD_INITIALIZER(left);
	struct work *work;

	if (!w)
		return NULL;
	event_del(w->finished);
	event_free(w->finished);
	w->finished = NULL;
	pthread_mutex_lock(&w->lock);
	STAILQ_CONCAT(&left, &w->done);
	STAILQ_CONCAT(&left, &w->todo);
	w->drop = drop;
	w->last = last;
	w->last_arg = arg;
	w->leaving = true;
	pthread_cond_signal(&w->more);
	pthread_mutex_unlock(&w->lock);
	while ((work = STAILQ_FIRST(&left))) {
		STAILQ_REMOVE_HEAD(&left, link);
		drop(work);
	}
	return NULL;
}
