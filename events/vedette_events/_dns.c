/* SPDX-License-Identifier: Apache-2.0 */
/* Names in DNS messages (RFC 1035 section 4.1). */
#include "_core.h"

#define DNS_HEADER 12
#define MAX_QUESTIONS 8 /* servers answer messages with more than one with FORMERR; nothing asks more */

bool vd_dns_name(const uint8_t *p, size_t n, size_t *at, uint8_t name[VD_DNS_NAME], size_t *size)
{
	size_t pos = *at, written = 0, wire = 1, lowest = pos;
	bool jumped = false;
	for (;;) {
		if (pos >= n)
			return false;
		uint8_t length = p[pos];
		if (length == 0) {
			if (!jumped)
				*at = pos + 1;
			*size = written;
			return true;
		}
		if ((length & 0xc0) == 0xc0) {
			if (n - pos < 2)
				return false;
			size_t target = (size_t)(length & 0x3f) << 8 | p[pos + 1];
			if (target >= lowest) /* each jump goes further back, so there is an end to them */
				return false;
			if (!jumped)
				*at = pos + 2;
			jumped = true;
			pos = lowest = target;
			continue;
		}
		if (length & 0xc0)
			return false;
		wire += length + 1u;
		if (n - pos - 1 < length || wire > 255)
			return false;
		if (written)
			name[written++] = '.';
		for (size_t i = 0; i < length; i++) {
			uint8_t c = p[pos + 1 + i];
			name[written++] = c >= 'A' && c <= 'Z' ? c | 0x20 : c;
		}
		pos += length + 1u;
	}
}

bool vd_dns_question(const uint8_t *p, size_t n, uint8_t name[VD_DNS_NAME], size_t *size)
{
	size_t at = DNS_HEADER;
	return n >= DNS_HEADER && (p[4] | p[5]) && vd_dns_name(p, n, &at, name, size);
}

static bool in_table(const uint8_t *table, size_t count, uint64_t hash)
{
	size_t low = 0;
	while (count) {
		size_t half = count / 2;
		uint64_t value = vd_load64(table + 8 * (low + half));
		if (value == hash)
			return true;
		if (value < hash) {
			low += half + 1;
			count -= half + 1;
		} else {
			count = half;
		}
	}
	return false;
}

bool vd_dns_match(const uint8_t *p, size_t n, const uint8_t *table, size_t count)
{
	if (n < DNS_HEADER)
		return false;
	size_t questions = (size_t)p[4] << 8 | p[5], at = DNS_HEADER;
	for (size_t q = 0; q < questions && q < MAX_QUESTIONS; q++) {
		uint8_t name[VD_DNS_NAME];
		size_t size;
		if (!vd_dns_name(p, n, &at, name, &size))
			return false;
		for (size_t start = 0; start < size; start++) {
			if ((start == 0 || name[start - 1] == '.') &&
			    in_table(table, count, vd_fnv1a(name + start, size - start)))
				return true;
		}
		at += 4; /* type and class; vd_dns_name checks the bound */
	}
	return false;
}
