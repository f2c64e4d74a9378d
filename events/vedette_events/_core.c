/* SPDX-License-Identifier: Apache-2.0 */
#include "_core.h"

#include "events.gen.h"

static inline uint32_t pad8(uint32_t n) { return (n + 7u) & ~7u; }

static bool fail(struct vd_error *error, enum vd_problem problem, uint64_t value, uint64_t bound)
{
	error->problem = problem;
	error->value = value;
	error->bound = bound;
	return false;
}

/* What holds for any record: *record_size is set when it may be walked over. */
static inline bool check_header(const uint8_t *record, size_t left, uint32_t *record_size, struct vd_error *error)
{
	if (left < VD_HEADER_SIZE)
		return fail(error, VD_SHORT_HEADER, left, VD_HEADER_SIZE);
	uint32_t size = vd_load32(record);
	error->type = vd_load16(record + 4);
	if (size & 7)
		return fail(error, VD_SIZE_ALIGNMENT, size, 8);
	if (size > left)
		return fail(error, VD_SIZE_BEYOND, size, left);
	if (size < VD_HEADER_SIZE)
		return fail(error, VD_SIZE_BELOW, size, VD_HEADER_SIZE);
	*record_size = size;
	return true;
}

bool vd_split_count(const uint8_t *records, size_t size, const struct vd_layout *layouts, struct vd_counts *counts,
		    struct vd_error *error)
{
	memset(counts, 0, sizeof(*counts));
	memset(error, 0, sizeof(*error));
	uint64_t index = 0;
	size_t offset = 0;
	while (offset < size) {
		const uint8_t *record = records + offset;
		uint32_t record_size;
		error->index = index;
		error->offset = offset;
		if (!check_header(record, size - offset, &record_size, error))
			return false;
		uint32_t type = error->type;
		if (type >= VD_MAX_TYPES || !layouts[type].fixed)
			return fail(error, VD_UNKNOWN_TYPE, type, 0);
		const struct vd_layout *layout = &layouts[type];
		if (record_size < layout->fixed)
			return fail(error, VD_SIZE_BELOW, record_size, layout->fixed);
		uint32_t total = layout->fixed;
		for (uint32_t t = 0; t < layout->tails; t++) {
			uint32_t length = vd_load16(record + layout->lengths_at + 2 * t);
			if (length > layout->limits[t]) {
				error->tail = t;
				return fail(error, VD_TAIL_LIMIT, length, layout->limits[t]);
			}
			total += length;
			counts->tail_bytes[type][t] += length;
		}
		if (pad8(total) != record_size)
			return fail(error, VD_SIZE_TAILS, record_size, pad8(total));
		counts->rows[type]++;
		index++;
		offset += record_size;
	}
	counts->records = index;
	return true;
}

/* Most tails are a few dozen bytes, for which a call to memcpy costs more than copying a little too much: what is
 * copied beyond the tail is overwritten by what follows it in the heap. */
static inline void copy_tail(uint8_t *to, size_t to_room, const uint8_t *from, size_t from_room, size_t n)
{
	size_t rounded = (n + 31) & ~(size_t)31;
	if (n <= 160 && rounded <= to_room && rounded <= from_room) {
		for (size_t i = 0; i < n; i += 32)
			memcpy(to + i, from + i, 32);
	} else {
		memcpy(to, from, n);
	}
}

/* The header alone is 72 bytes, so the last 32 bytes may be copied over what is copied already. */
static inline void copy_fixed(uint8_t *to, const uint8_t *from, size_t n)
{
	for (size_t i = 0; i < n - 32; i += 32)
		memcpy(to + i, from + i, 32);
	memcpy(to + n - 32, from + n - 32, 32);
}

void vd_split_copy(const uint8_t *restrict records, size_t size, const struct vd_layout *restrict layouts,
		   struct vd_columns_out *restrict outs)
{
	uint32_t index = 0;
	for (size_t offset = 0; offset < size; index++) {
		const uint8_t *record = records + offset;
		uint32_t type = vd_load16(record + 4);
		const struct vd_layout *layout = &layouts[type];
		struct vd_columns_out *out = &outs[type];
		const size_t fixed = layout->fixed;
		const uint8_t *lengths = record + layout->lengths_at;
		const size_t row = out->row++;
		copy_fixed(out->fixed + row * fixed, record, fixed);
		out->order[row] = index;
		size_t from = offset + fixed;
		for (struct vd_heap_out *heap = out->tails, *end = heap + layout->tails; heap < end; heap++) {
			const uint32_t length = vd_load16(lengths), at = heap->at;
			uint8_t *to = heap->data + at;
			lengths += 2;
			copy_tail(to, heap->size - at, records + from, size - from, length);
			to[length] = 0;
			from += length;
			heap->at = at + length + 1;
			heap->offsets[row + 1] = at + length + 1;
		}
		offset += vd_load32(record);
	}
}

bool vd_scan(const uint8_t *records, size_t size, uint64_t *count, uint64_t *first, uint64_t *last,
	     struct vd_error *error)
{
	uint64_t least = UINT64_MAX, greatest = 0, index = 0;
	memset(error, 0, sizeof(*error));
	for (size_t offset = 0; offset < size; index++) {
		uint32_t record_size;
		error->index = index;
		error->offset = offset;
		if (!check_header(records + offset, size - offset, &record_size, error))
			return false;
		uint64_t time = vd_load64(records + offset + offsetof(struct vd_header, time));
		least = time < least ? time : least;
		greatest = time > greatest ? time : greatest;
		offset += record_size;
	}
	*count = index;
	*first = index ? least : 0;
	*last = greatest;
	return true;
}

uint64_t vd_ring_producer(const struct vd_ring *ring)
{
	/* Pairs with the kernel's smp_store_release of producer_pos in __bpf_ringbuf_reserve. */
	return __atomic_load_n((const uint64_t *)ring->producer, __ATOMIC_ACQUIRE);
}

enum vd_drain_status vd_ring_drain(const struct vd_ring *ring, uint64_t from, uint8_t *out, size_t capacity,
				   struct vd_executables *executables, uint64_t judged, struct vd_drained *drained)
{
	memset(drained, 0, sizeof(*drained));
	drained->position = from;
	uint64_t producer = vd_ring_producer(ring);
	if ((from & 7) || producer - from > ring->size)
		return VD_DRAIN_CORRUPT;
	while (drained->position < producer) {
		const uint8_t *sample = ring->data + (drained->position & (ring->size - 1));
		/* Pairs with the xchg in bpf_ringbuf_commit: once the busy bit is gone the sample is whole. */
		uint32_t word = __atomic_load_n((const uint32_t *)sample, __ATOMIC_ACQUIRE);
		if (word & VD_RING_BUSY)
			break;
		uint64_t length = word & ~(VD_RING_BUSY | VD_RING_DISCARD);
		uint64_t step = (length + VD_RING_HEADER + 7) & ~7ull;
		if (step > producer - drained->position)
			return VD_DRAIN_CORRUPT;
		if (!(word & VD_RING_DISCARD)) {
			const uint8_t *record = sample + VD_RING_HEADER;
			/* A program may have reserved more than its record needed: the record's own size counts. */
			uint32_t size = length >= VD_HEADER_SIZE ? vd_load32(record) : 0;
			if (size < VD_HEADER_SIZE || (size & 7) || size > length || size > VD_RECORD_BOUND) {
				drained->malformed += drained->position >= judged;
			} else {
				if (size > capacity - drained->bytes)
					break;
				memcpy(out + drained->bytes, record, size);
				if (executables)
					vd_note_executable(executables, out + drained->bytes, size);
				drained->bytes += size;
				drained->records++;
			}
		}
		drained->position += step;
	}
	return VD_DRAIN_OK;
}

static inline uint64_t mix(uint64_t h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdull;
	h ^= h >> 29;
	return h;
}

/* Whether the file state is new; remembers it then. A full table is emptied: hashing again is only wasted work. */
static bool remember(struct vd_executables *executables, uint64_t dev, uint64_t ino, uint64_t ctime)
{
	if (executables->seen_count > VD_SEEN_SLOTS / 4 * 3) {
		memset(executables->seen, 0, sizeof(executables->seen));
		executables->seen_count = 0;
	}
	uint64_t slot = mix(ino ^ mix(ctime ^ mix(dev)));
	for (;; slot++) {
		struct vd_seen *seen = &executables->seen[slot & (VD_SEEN_SLOTS - 1)];
		if (!seen->ino) {
			*seen = (struct vd_seen){.ino = ino, .ctime = ctime, .dev = dev};
			executables->seen_count++;
			return true;
		}
		if (seen->ino == ino && seen->ctime == ctime && seen->dev == dev)
			return false;
	}
}

void vd_note_executable(struct vd_executables *executables, const uint8_t *record, uint32_t size)
{
	uint16_t type = vd_load16(record + offsetof(struct vd_header, type));
	uint32_t fixed, path_size;
	struct vd_executable entry;
	if (type == VD_EVENT_EXEC && size >= VD_EXEC_FIXED) {
		const struct vd_exec *exec = (const struct vd_exec *)record;
		entry.ino = exec->ino;
		entry.dev = exec->dev;
		entry.ctime = exec->ctime;
		entry.pid = exec->header.pid;
		path_size = exec->path_len;
		fixed = VD_EXEC_FIXED;
	} else if (type == VD_EVENT_MMAP && size >= VD_MMAP_FIXED) {
		const struct vd_mmap *map = (const struct vd_mmap *)record;
		entry.ino = map->ino;
		entry.dev = map->dev;
		entry.ctime = map->ctime;
		entry.pid = map->header.pid;
		path_size = map->path_len;
		fixed = VD_MMAP_FIXED;
	} else {
		return;
	}
	if (!entry.ino || path_size > size - fixed || executables->count == VD_NEW_EXECUTABLES ||
	    path_size > VD_NEW_PATHS - executables->paths_size)
		return; /* not remembered either: the next exec of the file gets its chance */
	if (!remember(executables, entry.dev, entry.ino, entry.ctime))
		return;
	entry.path_at = executables->paths_size;
	entry.path_size = path_size;
	memcpy(executables->paths + entry.path_at, record + fixed, path_size);
	executables->paths_size += path_size;
	executables->fresh[executables->count++] = entry;
}
