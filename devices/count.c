/*
 * Counts the AArch64 instructions that a guest executes under QEMU's user-mode emulation, and the multiply-adds in them.
 *
 * SPDX-License-Identifier: MIT
 * Copyright (c) 2026 the rankfold authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
 * documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
 * rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
 * persons to whom the Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
 * Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
 * COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 * OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * A plugin for version 1 of QEMU's interface (docs/devel/tcg-plugins), declared here since distributions ship no
 * qemu-plugin.h. When the guest makes the system call MARK, which Linux does not have, one line is appended to the
 * file `out=…`: instructions, SIMD instructions that multiply and add, and the multiply-adds they do, since the start.
 * Counters are not atomic: let the guest use one thread.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK 1000
#define INLINE_ADD_U64 0

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated)(uint64_t, struct qemu_plugin_tb *);
typedef void (*called)(uint64_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, translated);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t, called);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = 1;

static uint64_t instructions, multiplying, multiply_adds;
static FILE *out;

static unsigned bits(uint32_t word, unsigned high, unsigned low)
{
    return (word >> low) & ((1u << (high - low + 1)) - 1);
}

/* Multiply-adds of one instruction: "Advanced SIMD" of the Arm Architecture Reference Manual (DDI 0487, C4.1). */
static unsigned multiply_adds_of(uint32_t word)
{
    unsigned wide = bits(word, 30, 30), unsigned_ = bits(word, 29, 29), size = bits(word, 23, 22);
    unsigned bytes = wide ? 16 : 8, opcode;

    if ((word & 0x9F208400) == 0x0E008400) { /* three registers, extension */
        opcode = bits(word, 14, 11);
        if (size == 2 && (opcode == 2 || (opcode == 3 && !unsigned_))) /* SDOT UDOT USDOT */
            return bytes;
        if (size == 2 && (opcode == 4 || opcode == 5)) /* SMMLA UMMLA USMMLA */
            return 32;
        if (unsigned_ && size == 1 && opcode == 15) /* BFDOT */
            return bytes / 2;
        if (unsigned_ && size == 1 && opcode == 13) /* BFMMLA */
            return 16;
        if (unsigned_ && size == 3 && opcode == 15) /* BFMLALB BFMLALT */
            return 4;
        return 0;
    }
    if ((word & 0x9F60C400) == 0x0E400400) /* three registers, half precision */
        return bits(word, 13, 11) == 1 && !unsigned_ ? bytes / 2 : 0; /* FMLA FMLS */
    if ((word & 0x9F200400) == 0x0E200400) { /* three registers, same */
        opcode = bits(word, 15, 11);
        if (opcode == 25 && !unsigned_) /* FMLA FMLS */
            return bytes / (size & 1 ? 8 : 4);
        if (opcode == 18) /* MLA MLS */
            return bytes >> size;
        if ((opcode == 29 && !unsigned_) || (opcode == 25 && unsigned_)) /* FMLAL FMLSL */
            return bytes / 4;
        return 0;
    }
    if ((word & 0x9F200C00) == 0x0E200000) { /* three registers, different: 8 bytes of each make 16 */
        opcode = bits(word, 15, 12);
        return opcode == 8 || opcode == 10 || opcode == 12 ? 8 >> size : 0; /* SMLAL SMLSL SMULL, and unsigned */
    }
    if ((word & 0x9F000400) == 0x0F000000) { /* vector by indexed element */
        opcode = bits(word, 15, 12);
        if (!unsigned_ && (opcode == 1 || opcode == 5)) /* FMLA FMLS */
            return size == 0 ? bytes / 2 : bytes / (size & 1 ? 8 : 4);
        if (opcode == 2 || opcode == 6 || opcode == 10) /* SMLAL SMLSL SMULL, and unsigned */
            return 8 >> size;
        if (unsigned_ && (opcode == 0 || opcode == 4)) /* MLA MLS */
            return bytes >> size;
        if (opcode == 14) /* SDOT UDOT */
            return bytes;
        if (!unsigned_ && opcode == 15) /* SUDOT BFDOT USDOT BFMLAL, by size */
            return size == 1 ? bytes / 2 : size == 3 ? 4 : bytes;
    }
    return 0;
}

static void count(uint64_t id, struct qemu_plugin_tb *block)
{
    size_t length = qemu_plugin_tb_n_insns(block);
    uint64_t multiplying_here = 0, multiply_adds_here = 0;

    for (size_t k = 0; k < length; k++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, k)), sizeof word);
        unsigned found = multiply_adds_of(word);
        multiplying_here += found > 0;
        multiply_adds_here += found;
    }
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &instructions, length);
    if (multiplying_here) {
        qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &multiplying, multiplying_here);
        qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &multiply_adds, multiply_adds_here);
    }
}

static void mark(uint64_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                 uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    if (number != MARK)
        return;
    fprintf(out, "%llu %llu %llu\n", (unsigned long long)instructions, (unsigned long long)multiplying,
            (unsigned long long)multiply_adds);
    fflush(out);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    for (int k = 0; k < argc; k++)
        if (!strncmp(argv[k], "out=", 4))
            out = fopen(argv[k] + 4, "a");
    if (!out)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, count);
    qemu_plugin_register_vcpu_syscall_cb(id, mark);
    return 0;
}
