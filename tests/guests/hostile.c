/*
 * A guest that is nothing but hostile: no kernel, no interrupts, 64-bit from its first instruction. It writes to every port and
 * register at random, and drives every virtio device with queues that are half right. The seed stands on the command line.
 *
 * Built by tests/src/lab.rs: freestanding, at 4 MiB, its own page tables for the first 4 GiB.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* vmm-launcher/src/kvm/layout.rs */
#define DEVICES 0xd0000000ul
#define DEVICE_BYTES 0x1000ul
#define DEVICE_COUNT 19
#define GAP 0xc0000000ul
#define GAP_BYTES 0x3e000000ul /* up to the interrupt controllers, which are KVM's */
#define SERIAL 0x3f8

/* What devices may write to: neither this program nor its queues are there. */
#define PLAYGROUND 0x2000000ul
#define PLAYGROUND_BYTES 0x2000000ul
/* Queues of the devices, 64 KiB each: descriptors, available, used. */
#define QUEUES 0x1000000ul
#define QUEUE_BYTES 0x10000ul
#define ENTRIES 256

#define ROUNDS 12
#define KICKS 40

static u64 tables[6][512] __attribute__((aligned(4096)));
static u64 state;

static u64 random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static u64 below(u64 limit) { return (random() >> 11) % limit; }
static int one_in(u64 n) { return below(n) == 0; }

static void out8(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static void say(const char *text)
{
	while (*text)
		out8(SERIAL, *text++);
}

static u32 get(u64 address) { return *(volatile u32 *)address; }
static void set(u64 address, u32 value) { *(volatile u32 *)address = value; }

static void map_everything(void)
{
	tables[0][0] = (u64)tables[1] | 3;
	for (u64 gib = 0; gib < 4; gib++) {
		tables[1][gib] = (u64)tables[2 + gib] | 3;
		for (u64 page = 0; page < 512; page++)
			tables[2 + gib][page] = gib << 30 | page << 21 | 0x83;
	}
	asm volatile("mov %0, %%cr3" : : "r"(tables[0]) : "memory");
}

static void spray_ports(void)
{
	for (int n = 0; n < 400; n++) {
		u16 port = one_in(2) ? (u16)random() : one_in(2) ? SERIAL + below(10) : 0x60 + below(8);
		u32 value = (u32)random();
		/* The end of the machine comes last; the interrupt controllers' and the timer's ports are KVM's. */
		if (port >= 0x60 && port <= 0x64 && (value & 0xff) == 0xfe)
			continue;
		switch (below(7)) {
		case 0: asm volatile("outb %b0, %1" : : "a"(value), "Nd"(port)); break;
		case 1: asm volatile("outw %w0, %1" : : "a"(port >= 0x61 && port <= 0x64 ? 0 : value), "Nd"(port)); break;
		case 2: asm volatile("outl %0, %1" : : "a"(port >= 0x61 && port <= 0x64 ? 0 : value), "Nd"(port)); break;
		case 3: asm volatile("inb %1, %b0" : "=a"(value) : "Nd"(port)); break;
		case 4: asm volatile("inw %1, %w0" : "=a"(value) : "Nd"(port)); break;
		case 5: asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); break;
		case 6: {
			u64 from = PLAYGROUND, count = below(64);
			if (port < 0x60 || port > 0x64)
				asm volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(port) : "memory");
		}
		}
	}
}

static void spray_memory(void)
{
	for (int n = 0; n < 400; n++) {
		u64 address = one_in(8) ? GAP + below(GAP_BYTES) : DEVICES + below(DEVICE_COUNT * DEVICE_BYTES);
		if (one_in(2))
			address = DEVICES + below(DEVICE_COUNT) * DEVICE_BYTES + (below(0x200) & ~3ul);
		u64 value = one_in(2) ? random() : below(16);
		switch (below(10)) {
		case 0: *(volatile u8 *)address = (u8)value; break;
		case 1: *(volatile u16 *)address = (u16)value; break;
		case 2: case 3: *(volatile u32 *)address = (u32)value; break;
		case 4: *(volatile u64 *)address = value; break;
		case 5: value = *(volatile u8 *)address; break;
		case 6: value = *(volatile u16 *)address; break;
		case 7: value = *(volatile u32 *)address; break;
		case 8: value = *(volatile u64 *)address; break;
		case 9: {
			u64 from = PLAYGROUND + below(0x1000), count = below(40);
			asm volatile("rep movsb" : "+S"(from), "+D"(address), "+c"(count) : : "memory");
		}
		}
	}
}

/* What a request may look like to one device or another, at the address. */
static void write_header(u64 address, u32 id)
{
	volatile u32 *words = (volatile u32 *)address;
	for (int n = 0; n < 16; n++)
		words[n] = (u32)random();
	if (one_in(8))
		return;
	switch (id) {
	case 2: /* block: type, reserved, sector */
		words[0] = below(15);
		words[2] = below(70000);
		words[3] = one_in(8) ? ~0u : 0;
		break;
	case 19: /* vsock: from 3 to 2, ports, length, type and operation, flags, credit */
		words[0] = 3, words[1] = 0, words[2] = 2, words[3] = 0;
		words[4] = below(4), words[5] = one_in(2) ? 1 : 5;
		words[6] = one_in(4) ? random() : below(300);
		words[7] = 1 | (u32)below(9) << 16;
		words[8] = below(4);
		words[9] = random(), words[10] = below(1000);
		break;
	case 26: /* FUSE: length, opcode, unique, node, uid, gid, pid */
		words[0] = one_in(4) ? random() : 40 + below(100);
		words[1] = below(53);
		words[4] = below(6), words[5] = 0;
		words[6] = 0, words[7] = 0;
		if (one_in(4)) { /* INIT, or else everything else is refused */
			words[0] = 56, words[1] = 26, words[10] = 7, words[11] = 31 + below(10);
		}
	}
}

static u64 anywhere(void)
{
	switch (below(12)) {
	case 0: return random();
	case 1: return ~0ul - below(0x10000);
	case 2: return GAP + below(GAP_BYTES);
	case 3: return 0x8000000ul - below(0x2000); /* around the end of memory */
	default: return PLAYGROUND + below(PLAYGROUND_BYTES) / (one_in(2) ? 1 : 4096) * (one_in(2) ? 1 : 4096) % PLAYGROUND_BYTES;
	}
}

static void write_descriptor(u64 table, u32 index, u32 id)
{
	volatile u64 *place = (volatile u64 *)(table + index * 16);
	u64 address = anywhere();
	u32 length = one_in(6) ? (u32)random() : one_in(3) ? below(16) * 4096 : below(200);
	if (address >= PLAYGROUND && address < PLAYGROUND + PLAYGROUND_BYTES - 64)
		write_header(address, id);
	/* Never so long that it reaches beyond what may be written, unless it is outside of all memory. */
	if (address >= PLAYGROUND && address < PLAYGROUND + PLAYGROUND_BYTES && length > PLAYGROUND_BYTES)
		length = (u32)below(0x1000000);
	u32 flags = one_in(10) ? (u32)random() & 7 : below(4);
	u32 next = one_in(10) ? (u32)random() & 0xffff : below(ENTRIES);
	place[0] = address;
	place[1] = length | (u64)flags << 32 | (u64)next << 48;
}

static void drive(u64 device, u32 id)
{
	set(device + 0x70, 0);
	set(device + 0x70, 1);
	set(device + 0x70, 3);
	for (u32 half = 0; half < 2; half++) {
		set(device + 0x14, half);
		u32 offered = get(device + 0x10);
		set(device + 0x24, half);
		/* Version 1 mostly; EVENT_IDX and indirect descriptors as it comes. */
		set(device + 0x20, half ? (one_in(10) ? 0 : 1) : (one_in(20) ? (u32)random() : offered & (u32)random()));
	}
	set(device + 0x70, 11);
	u32 count = 0;
	for (; count < 4; count++) {
		u64 queue = QUEUES + count * QUEUE_BYTES;
		set(device + 0x30, count);
		u32 largest = get(device + 0x34);
		if (largest == 0)
			break;
		set(device + 0x38, one_in(10) ? (u32)random() : ENTRIES);
		u64 places[3] = { queue, queue + 0x4000, queue + 0x8000 };
		for (int n = 0; n < 3; n++) {
			if (one_in(30))
				places[n] = anywhere();
			set(device + 0x80 + n * 0x10, (u32)places[n]);
			set(device + 0x84 + n * 0x10, (u32)(places[n] >> 32));
		}
		for (u32 n = 0; n < ENTRIES; n++) {
			write_descriptor(queue, n, id);
			*(volatile u16 *)(queue + 0x4004 + n * 2) = one_in(20) ? (u16)random() : below(ENTRIES);
		}
		*(volatile u32 *)(queue + 0x4000) = 0;
		*(volatile u32 *)(queue + 0x8000) = 0;
		set(device + 0x44, 1);
	}
	set(device + 0x70, 15);
	for (int n = 0; n < KICKS; n++) {
		u32 index = below(count ? count : 1);
		u64 queue = QUEUES + index * QUEUE_BYTES;
		*(volatile u16 *)(queue + 0x4002) += one_in(20) ? (u16)random() : below(16);
		*(volatile u16 *)(queue + 0x4004 + ENTRIES * 2) = (u16)random();
		set(device + 0x50, one_in(20) ? (u32)random() : index);
		/* While the device looks at them. */
		for (int m = 0; m < 8; m++)
			write_descriptor(queue, below(ENTRIES), id);
	}
}

void hostile(u64 zero_page)
{
	const char *line = (const char *)(u64)*(u32 *)(zero_page + 0x228);
	state = 0x9e3779b97f4a7c15ul;
	for (; *line; line++)
		state = (state ^ (u8)*line) * 0x100000001b3ul;
	map_everything();
	say("hostile\n");
	for (int round = 0; round < ROUNDS; round++) {
		for (u64 n = 0; n < DEVICE_COUNT; n++) {
			u64 device = DEVICES + n * DEVICE_BYTES;
			if (get(device) == 0x74726976)
				drive(device, get(device + 8));
		}
		spray_memory();
		spray_ports();
	}
	/* The serial port may be anything now. */
	out8(SERIAL + 3, 0), out8(SERIAL + 4, 0), out8(SERIAL + 1, 0);
	say("\nsprayed\n");
	for (;;)
		out8(0x64, 0xfe);
}

asm(".globl _start\n_start: mov $stack_end, %rsp\nmov %rsi, %rdi\ncall hostile\n"
    ".bss\n.align 16\n.skip 16384\nstack_end:\n.text\n");
