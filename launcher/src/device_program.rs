//! Device rules as a program for the cgroup (`Documentation/admin-guide/cgroup-v2.rst`, "Device controller").
//!
//! The last rule that speaks of an access decides it, each of read, write and mknod by itself; what no rule speaks of is
//! denied. The program looks at the rules from the last to the first and keeps the accesses not yet allowed.

use nacre_protocols::init_launcher::{DeviceKind, DeviceRule};
use nacre_sys::bpf::Instruction;

// `linux/bpf.h`: enum of BPF_PROG_TYPE_CGROUP_DEVICE.
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;

// Offsets in `struct bpf_cgroup_dev_ctx`, in bytes.
const ACCESS_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;

// Instruction codes (`Documentation/bpf/standardization/instruction-set.rst`), on 32 bits where nothing else is said.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SHIFT_LEFT: u8 = 0x64;
const OR_REGISTER: u8 = 0x4c;
const EXCLUSIVE_OR: u8 = 0xa4;
// On 64 bits.
const SUBTRACT_LONG: u8 = 0x17;
const SHIFT_RIGHT_LONG: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x16;
const JUMP_IF_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

// Registers.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR_NUMBER: u8 = 4;
const MINOR_NUMBER: u8 = 5;
const SCRATCH: u8 = 6;
/// Major and minor as one number, as the kernel has them (`linux/kdev_t.h`: 12 and 20 bits).
const DEVICE: u8 = 7;
const MINOR_BITS: u32 = 20;
const MAJOR_END: u32 = 1 << 12;

pub fn generate(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, ACCESS_TYPE, 0),
        instruction(MOVE_REGISTER, WANTED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR_NUMBER, CONTEXT, MAJOR, 0),
        instruction(LOAD_WORD, MINOR_NUMBER, CONTEXT, MINOR, 0),
        instruction(MOVE_REGISTER, DEVICE, MAJOR_NUMBER, 0, 0),
        instruction(SHIFT_LEFT, DEVICE, 0, 0, MINOR_BITS as i32),
        instruction(OR_REGISTER, DEVICE, MINOR_NUMBER, 0, 0),
    ];
    // The kernel goes every way through the program before it takes it, at a price that a start of a container feels. So
    // neighbours that allow everything to devices of one kind are compared without a jump for each.
    let mut rules: Vec<&DeviceRule> = rules.iter().rev().collect();
    while let Some(first) = rules.first() {
        let kind = first.kind;
        let alike = rules.iter().take_while(|rule| rule.kind == kind && whole_device(rule).is_some()).count();
        let rest = rules.split_off(alike.max(1).min(rules.len()));
        match rules.as_slice() {
            [rule] => append_rule(rule, &mut program),
            group => append_group(group, &mut program),
        }
        rules = rest;
    }
    program.extend(answer(0));
    program
}

/// How a rule is found that allows everything to one device, or to all of one major: a register and its value.
fn whole_device(rule: &DeviceRule) -> Option<(u8, i32)> {
    let everything = rule.allow && rule.read && rule.write && rule.mknod;
    let major = rule.major.filter(|major| everything && rule.kind.is_some() && *major < MAJOR_END)?;
    match rule.minor {
        None => Some((MAJOR_NUMBER, major.cast_signed())),
        Some(minor) if minor >> MINOR_BITS == 0 => {
            Some((DEVICE, (major << MINOR_BITS | minor).cast_signed()))
        }
        Some(_) => None,
    }
}

/// Several rules of one kind, each for a whole device: any that matches allows.
fn append_group(rules: &[&DeviceRule], program: &mut Vec<Instruction>) {
    let Some(kind) = rules.first().and_then(|rule| kind_number(rule.kind)) else { return };
    // 1 in the result if the difference is 0: only then taking 1 away reaches the highest bit.
    let mut comparisons = vec![instruction(MOVE, RESULT, 0, 0, 0)];
    for (register, value) in rules.iter().filter_map(|rule| whole_device(rule)) {
        comparisons.extend([
            instruction(MOVE_REGISTER, SCRATCH, register, 0, 0),
            instruction(EXCLUSIVE_OR, SCRATCH, 0, 0, value),
            instruction(SUBTRACT_LONG, SCRATCH, 0, 0, 1),
            instruction(SHIFT_RIGHT_LONG, SCRATCH, 0, 0, 63),
            instruction(OR_REGISTER, RESULT, SCRATCH, 0, 0),
        ]);
    }
    let [set, exit] = answer(1);
    comparisons.extend([instruction(JUMP_IF_EQUAL, RESULT, 0, 2, 0), set, exit]);
    program.push(instruction(JUMP_IF_NOT_EQUAL, KIND, 0, comparisons.len() as i16, kind));
    program.extend(comparisons);
}

/// No access of a fifo ever comes here.
fn kind_number(kind: Option<DeviceKind>) -> Option<i32> {
    match kind {
        Some(DeviceKind::Character) => Some(TYPE_CHARACTER),
        Some(DeviceKind::Block) => Some(TYPE_BLOCK),
        Some(DeviceKind::Fifo) | None => None,
    }
}

/// Falls through to what follows unless the rule decides.
fn append_rule(rule: &DeviceRule, program: &mut Vec<Instruction>) {
    let mut access = 0;
    for (said, bit) in [(rule.read, ACCESS_READ), (rule.write, ACCESS_WRITE), (rule.mknod, ACCESS_MKNOD)] {
        access |= if said { bit } else { 0 };
    }
    if rule.kind == Some(DeviceKind::Fifo) {
        return;
    }
    let kind = kind_number(rule.kind);
    let [set, exit] = answer(i32::from(rule.allow));
    let decision = if rule.allow {
        // Take what is allowed out of what is wanted; allowed if nothing is left.
        vec![
            instruction(AND, WANTED, 0, 0, !access),
            instruction(JUMP_IF_NOT_EQUAL, WANTED, 0, 2, 0),
            set,
            exit,
        ]
    } else {
        // Denied if anything of what is wanted is.
        vec![
            instruction(MOVE_REGISTER, SCRATCH, WANTED, 0, 0),
            instruction(AND, SCRATCH, 0, 0, access),
            instruction(JUMP_IF_EQUAL, SCRATCH, 0, 2, 0),
            set,
            exit,
        ]
    };
    let conditions = [
        kind.map(|kind| (KIND, kind)),
        rule.major.map(|major| (MAJOR_NUMBER, major.cast_signed())),
        rule.minor.map(|minor| (MINOR_NUMBER, minor.cast_signed())),
    ];
    let mut remaining = conditions.iter().flatten().count() + decision.len();
    for (register, value) in conditions.into_iter().flatten() {
        // Over the rest of this rule: at most seven instructions.
        remaining -= 1;
        program.push(instruction(JUMP_IF_NOT_EQUAL, register, 0, remaining as i16, value));
    }
    program.extend(decision);
}

fn answer(allowed: i32) -> [Instruction; 2] {
    [instruction(MOVE, RESULT, 0, 0, allowed), instruction(EXIT, 0, 0, 0, 0)]
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, for the instructions used here.
    fn run(program: &[Instruction], context: [u32; 3]) -> u32 {
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        // Every jump goes forward, so no instruction runs twice.
        while at < program.len() {
            let it = program[at];
            let (to, from) = (usize::from(it.registers & 15), usize::from(it.registers >> 4));
            let immediate = u64::from(it.immediate as u32);
            at += 1;
            let mut jump =
                |taken: bool| at = at.wrapping_add_signed(if taken { it.offset.into() } else { 0 });
            match it.code {
                LOAD_WORD => registers[to] = u64::from(context[it.offset as usize / 4]),
                MOVE => registers[to] = immediate,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                SHIFT_LEFT => registers[to] = u64::from((registers[to] as u32) << immediate),
                OR_REGISTER => registers[to] |= registers[from],
                EXCLUSIVE_OR => registers[to] ^= immediate,
                SUBTRACT_LONG => registers[to] = registers[to].wrapping_sub(immediate),
                SHIFT_RIGHT_LONG => registers[to] >>= immediate,
                JUMP_IF_EQUAL => jump(registers[to] == immediate),
                JUMP_IF_NOT_EQUAL => jump(registers[to] != immediate),
                EXIT => return registers[0] as u32,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
        panic!("the program does not end");
    }

    fn rule(
        allow: bool,
        kind: Option<DeviceKind>,
        major: Option<u32>,
        minor: Option<u32>,
        access: &str,
    ) -> DeviceRule {
        let has = |letter| access.contains(letter);
        DeviceRule { allow, kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') }
    }

    #[test]
    fn the_last_rule_that_speaks_of_an_access_decides_it() {
        let char = Some(DeviceKind::Character);
        let rules = [
            rule(false, None, None, None, "rwm"),
            rule(true, char, None, None, "m"),
            rule(true, char, Some(1), Some(3), "rwm"),
            rule(true, char, Some(136), None, "rw"),
            rule(true, char, Some(5), Some(2), "r"),
            rule(true, char, Some(5), Some(2), "w"),
            rule(true, char, Some(7), None, "rw"),
            rule(false, char, Some(7), Some(1), "w"),
            rule(true, None, Some(0xffff_ffff), None, "r"),
        ];
        let program = generate(&rules);
        for (kind, major, minor, access, allowed) in [
            (TYPE_CHARACTER, 1, 3, ACCESS_READ | ACCESS_WRITE, true),
            (TYPE_CHARACTER, 1, 3, ACCESS_MKNOD, true),
            (TYPE_CHARACTER, 1, 1, ACCESS_READ, false),
            (TYPE_CHARACTER, 1, 1, ACCESS_MKNOD, true),
            (TYPE_CHARACTER, 136, 17, ACCESS_WRITE, true),
            (TYPE_CHARACTER, 136, 17, ACCESS_WRITE | ACCESS_MKNOD, true),
            (TYPE_CHARACTER, 5, 2, ACCESS_READ | ACCESS_WRITE, true),
            (TYPE_CHARACTER, 7, 2, ACCESS_READ | ACCESS_WRITE, true),
            (TYPE_CHARACTER, 7, 1, ACCESS_READ, true),
            (TYPE_CHARACTER, 7, 1, ACCESS_READ | ACCESS_WRITE, false),
            (TYPE_BLOCK, 1, 3, ACCESS_READ, false),
            (TYPE_BLOCK, 254, 0, ACCESS_READ, false),
            (TYPE_BLOCK, 254, 0, ACCESS_MKNOD, false),
        ] {
            let context = [(access << 16 | kind & 0xffff) as u32, major as u32, minor];
            assert_eq!(run(&program, context), u32::from(allowed), "{kind} {major}:{minor} {access}");
        }
        assert_eq!(run(&program, [(ACCESS_READ << 16 | TYPE_BLOCK) as u32, u32::MAX, 9]), 1);
    }

    /// What the specification says, rule by rule.
    fn allowed(rules: &[DeviceRule], kind: DeviceKind, major: u32, minor: u32, access: i32) -> bool {
        let speaks = |rule: &&DeviceRule, bit| {
            let of = [(rule.read, ACCESS_READ), (rule.write, ACCESS_WRITE), (rule.mknod, ACCESS_MKNOD)];
            rule.kind.is_none_or(|it| it == kind)
                && rule.major.is_none_or(|it| it == major)
                && rule.minor.is_none_or(|it| it == minor)
                && of.iter().any(|(said, it)| *said && *it == bit)
        };
        let decides = |bit| rules.iter().rev().find(|rule| speaks(rule, bit)).is_some_and(|rule| rule.allow);
        [ACCESS_READ, ACCESS_WRITE, ACCESS_MKNOD].into_iter().filter(|bit| access & bit != 0).all(decides)
    }

    #[test]
    fn rules_that_are_neighbours_decide_as_each_would_alone() {
        const KINDS: [DeviceKind; 2] = [DeviceKind::Character, DeviceKind::Block];
        // Those of docker, and numbers that do not fit into the kernel's one.
        let mut rules = vec![
            rule(true, Some(KINDS[0]), None, None, "m"),
            rule(true, Some(KINDS[1]), None, None, "m"),
            rule(true, Some(KINDS[1]), Some(1 << 12), Some(3), "rwm"),
            rule(true, Some(KINDS[1]), Some(1), Some(1 << 20), "rwm"),
            rule(false, Some(KINDS[0]), Some(5), Some(1), "rw"),
        ];
        for (major, minor) in [(1, Some(3)), (1, Some(5)), (5, Some(2)), (136, None), (4095, Some(0xf_ffff))]
        {
            rules.push(rule(true, Some(KINDS[0]), Some(major), minor, "rwm"));
        }
        rules.push(rule(true, Some(KINDS[1]), Some(8), Some(0), "rwm"));
        rules.push(rule(true, Some(KINDS[1]), Some(8), Some(1), "rwm"));
        rules.push(rule(false, Some(KINDS[1]), Some(8), None, "w"));
        let program = generate(&rules);
        for kind in KINDS {
            for major in [0, 1, 5, 8, 136, 4095, 4096] {
                for minor in [0, 1, 2, 3, 5, 0xf_ffff, 1 << 20] {
                    for access in 1..8 {
                        let number = if kind == KINDS[0] { TYPE_CHARACTER } else { TYPE_BLOCK };
                        let context = [(access << 16 | number) as u32, major, minor];
                        // The kernel's own numbers have 12 and 20 bits; others match nothing, or what they are made of.
                        if major < MAJOR_END && minor >> MINOR_BITS == 0 {
                            let expected = u32::from(allowed(&rules, kind, major, minor, access));
                            assert_eq!(
                                run(&program, context),
                                expected,
                                "{kind:?} {major}:{minor} {access:#x}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_rules_nothing_is_allowed_and_the_longest_list_fits() {
        let context = |access: i32| [(access << 16 | TYPE_CHARACTER) as u32, 1, 3];
        assert_eq!(run(&generate(&[]), context(ACCESS_READ)), 0);
        let longest = rule(false, Some(DeviceKind::Block), Some(8), Some(1), "rwm");
        let program = generate(&vec![longest; nacre_protocols::init_launcher::DEVICES_MAX]);
        assert!(program.len() <= nacre_sys::bpf::PROGRAM_MAX, "{}", program.len());
    }
}
