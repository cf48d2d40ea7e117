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

// Instruction codes (`Documentation/bpf/standardization/instruction-set.rst`), all on 32 bits.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
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

pub fn generate(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, ACCESS_TYPE, 0),
        instruction(MOVE_REGISTER, WANTED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR_NUMBER, CONTEXT, MAJOR, 0),
        instruction(LOAD_WORD, MINOR_NUMBER, CONTEXT, MINOR, 0),
    ];
    for rule in rules.iter().rev() {
        append_rule(rule, &mut program);
    }
    program.extend(answer(0));
    program
}

/// Falls through to what follows unless the rule decides.
fn append_rule(rule: &DeviceRule, program: &mut Vec<Instruction>) {
    let mut access = 0;
    for (said, bit) in [(rule.read, ACCESS_READ), (rule.write, ACCESS_WRITE), (rule.mknod, ACCESS_MKNOD)] {
        access |= if said { bit } else { 0 };
    }
    let kind = match rule.kind {
        Some(DeviceKind::Character) => Some(TYPE_CHARACTER),
        Some(DeviceKind::Block) => Some(TYPE_BLOCK),
        // No access of a fifo ever comes here.
        Some(DeviceKind::Fifo) => return,
        None => None,
    };
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
        let mut registers = [0u32; 11];
        let mut at = 0usize;
        // Every jump goes forward, so no instruction runs twice.
        while at < program.len() {
            let it = program[at];
            let (to, from) = (usize::from(it.registers & 15), usize::from(it.registers >> 4));
            let immediate = it.immediate as u32;
            at += 1;
            let mut jump =
                |taken: bool| at = at.wrapping_add_signed(if taken { it.offset.into() } else { 0 });
            match it.code {
                LOAD_WORD => registers[to] = context[it.offset as usize / 4],
                MOVE => registers[to] = immediate,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_IF_EQUAL => jump(registers[to] == immediate),
                JUMP_IF_NOT_EQUAL => jump(registers[to] != immediate),
                EXIT => return registers[0],
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

    #[test]
    fn without_rules_nothing_is_allowed_and_the_longest_list_fits() {
        let context = |access: i32| [(access << 16 | TYPE_CHARACTER) as u32, 1, 3];
        assert_eq!(run(&generate(&[]), context(ACCESS_READ)), 0);
        let longest = rule(false, Some(DeviceKind::Block), Some(8), Some(1), "rwm");
        let program = generate(&vec![longest; nacre_protocols::init_launcher::DEVICES_MAX]);
        assert!(program.len() <= nacre_sys::bpf::PROGRAM_MAX, "{}", program.len());
    }
}
