//! Assembles seccomp programs: a decision per system call number, some with conditions on arguments.
//!
//! The program loads the number once and finds its rule by binary search, so that its length grows with the number of
//! distinct decisions and its running time with the logarithm. Source: seccomp(2), `linux/seccomp.h`, `linux/bpf_common.h`.

use std::collections::BTreeMap;

/// Code, jt, jf, k: as in `struct sock_filter`.
pub type Instruction = (u16, u8, u8, u32);

/// Longest program, in instructions (BPF_MAXINSNS).
pub const PROGRAM_MAX: usize = 4096;
/// First number of the x32 calls, which are no calls of ours (`__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// The calls of 32-bit programs.
pub const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const ENOSYS: u16 = 38;
/// Highest errno that a filter can return (MAX_ERRNO).
const ERRNO_MAX: u32 = 4095;

/// What the kernel does with a call: the return value of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action(u32);

impl Action {
    pub const KILL_PROCESS: Self = Self(0x8000_0000);
    pub const KILL_THREAD: Self = Self(0);
    pub const LOG: Self = Self(0x7ffc_0000);
    pub const ALLOW: Self = Self(0x7fff_0000);
    /// Whoever holds the filter's listener decides.
    pub const NOTIFY: Self = Self(0x7fc0_0000);
    pub const NO_SUCH_CALL: Self = Self(0x0005_0000 | ENOSYS as u32);

    /// The call fails with `errno`, at most 4095.
    pub fn errno(errno: u32) -> Self {
        Self(0x0005_0000 | if errno > ERRNO_MAX { ERRNO_MAX } else { errno })
    }

    /// A tracer decides, told `data`; without one the call fails with ENOSYS.
    pub fn trace(data: u16) -> Self {
        Self(0x7ff0_0000 | u32::from(data))
    }

    /// SIGSYS with `data` in it.
    pub fn trap(data: u16) -> Self {
        Self(0x0003_0000 | u32::from(data))
    }

    pub const fn value(self) -> u32 {
        self.0
    }
}

/// A comparison of one 64-bit argument, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal(u64),
    NotEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    /// `argument & mask == value`.
    MaskedEqual {
        mask: u64,
        value: u64,
    },
}

/// The system call has six arguments, 0 to 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    pub argument: u8,
    pub comparison: Comparison,
}

/// `action` when every condition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    pub conditions: Vec<Condition>,
    pub action: Action,
}

/// A whole filter for x86-64. Calls of another architecture kill the process; x32 calls do not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// By number; of a call's clauses the first that holds decides.
    pub calls: BTreeMap<u32, Vec<Clause>>,
    /// What no clause decides.
    pub default: Action,
    /// Calls with numbers above the first get the second instead of the default.
    pub beyond: Option<(u32, Action)>,
    /// Calls of a second architecture that are not killed: its number of `linux/audit.h`, with numbers of its own.
    pub foreign: Option<(u32, BTreeMap<u32, Vec<Clause>>)>,
}

/// The program would be longer than [`PROGRAM_MAX`], or an argument's number is above 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssembleError {
    TooLong,
    NoSuchArgument { argument: u8 },
}

impl Filter {
    pub fn assemble(&self) -> Result<Vec<Instruction>, AssembleError> {
        const KILL: Instruction = (RETURN, 0, 0, Action::KILL_PROCESS.value());
        let native = search(&self.decisions(&self.calls), self.default)?;
        let mut program = vec![(LOAD, 0, 0, OFFSET_ARCH)];
        match &self.foreign {
            None => program.extend([(JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64), KILL]),
            // Over the native part: its number is loaded first.
            Some(_) => {
                program.extend([(JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64), (JUMP, 0, 0, native.len() as u32 + 1)])
            }
        }
        program.push((LOAD, 0, 0, OFFSET_NUMBER));
        program.extend(native);
        if let Some((architecture, calls)) = &self.foreign {
            program.extend([(JUMP_EQUAL, 1, 0, *architecture), KILL, (LOAD, 0, 0, OFFSET_NUMBER)]);
            program.extend(search(&self.decisions(calls), self.default)?);
        }
        if program.len() > PROGRAM_MAX { Err(AssembleError::TooLong) } else { Ok(program) }
    }

    /// All numbers, cut into stretches with one decision each; the first begins at 0.
    fn decisions<'a>(&self, calls: &'a BTreeMap<u32, Vec<Clause>>) -> Vec<Decision<'a>> {
        let mut all = vec![Decision { from: 0, what: What::Return(self.default) }];
        for (&number, clauses) in calls.range(..X32) {
            let what = match clauses.first() {
                Some(clause) if clause.conditions.is_empty() => What::Return(clause.action),
                Some(_) => What::Clauses(clauses),
                None => continue,
            };
            cut(&mut all, number, what);
            cut(&mut all, number + 1, What::Return(self.default));
        }
        if let Some((last, action)) = self.beyond
            && last < X32 - 1
        {
            // The last stretch is the default's own, for no call of ours lies above it.
            let from = all.last().map_or(0, |decision| decision.from).max(last + 1);
            cut(&mut all, from, What::Return(action));
        }
        cut(&mut all, X32, What::Return(Action::NO_SUCH_CALL));
        all
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Decision<'a> {
    from: u32,
    what: What<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What<'a> {
    Return(Action),
    Clauses(&'a [Clause]),
}

/// Adds a stretch, which replaces one that begins at the same number and joins one with the same decision.
fn cut<'a>(all: &mut Vec<Decision<'a>>, from: u32, what: What<'a>) {
    if all.last().is_some_and(|last| last.from == from) {
        all.pop();
    }
    let joins = matches!(what, What::Return(_)) && all.last().is_some_and(|last| last.what == what);
    if !joins {
        all.push(Decision { from, what });
    }
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// struct seccomp_data: nr, arch, instruction pointer, six arguments of 8 bytes, here little-endian.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// Code that finds the decision for the number in the accumulator. Every way through it ends in a return.
fn search(decisions: &[Decision<'_>], default: Action) -> Result<Vec<Instruction>, AssembleError> {
    let (left, right) = match decisions {
        [] => return Ok(vec![(RETURN, 0, 0, default.value())]),
        [decision] => return leaf(decision, default),
        _ => decisions.split_at(decisions.len() / 2),
    };
    let from = right.first().map_or(0, |decision| decision.from);
    let below = search(left, default)?;
    let above = search(right, default)?;
    let mut code = match u8::try_from(below.len()) {
        Ok(skip) => vec![(JUMP_GREATER_OR_EQUAL, skip, 0, from)],
        Err(_) => vec![(JUMP_GREATER_OR_EQUAL, 0, 1, from), (JUMP, 0, 0, below.len() as u32)],
    };
    code.extend(below);
    code.extend(above);
    if code.len() > PROGRAM_MAX { Err(AssembleError::TooLong) } else { Ok(code) }
}

fn leaf(decision: &Decision<'_>, default: Action) -> Result<Vec<Instruction>, AssembleError> {
    let clauses = match decision.what {
        What::Return(action) => return Ok(vec![(RETURN, 0, 0, action.value())]),
        What::Clauses(clauses) => clauses,
    };
    let mut code = Vec::new();
    let mut last = default;
    for clause in clauses {
        if clause.conditions.is_empty() {
            last = clause.action;
            break;
        }
        code.extend(conditional(clause)?);
        if code.len() > PROGRAM_MAX {
            return Err(AssembleError::TooLong);
        }
    }
    code.push((RETURN, 0, 0, last.value()));
    Ok(code)
}

/// Where a test goes on.
#[derive(Clone, Copy)]
enum To {
    /// The instruction behind.
    Next,
    /// Behind the test: the condition holds.
    Holds,
    /// Behind the clause: the condition does not hold.
    Fails,
}

/// Returns the action when all conditions hold, and otherwise falls out of its end.
fn conditional(clause: &Clause) -> Result<Vec<Instruction>, AssembleError> {
    // Built from the end, for a jump needs to know how long what it skips is.
    let mut code = vec![(RETURN, 0, 0, clause.action.value())];
    for condition in clause.conditions.iter().rev() {
        let test = test(*condition)?;
        let mut resolved = Vec::with_capacity(test.len() + code.len());
        for (index, (operation, on_true, on_false, k)) in test.iter().enumerate() {
            let left = test.len() - index - 1;
            let distance = |to: &To| match to {
                To::Next => Ok(0),
                To::Holds => u8::try_from(left),
                To::Fails => u8::try_from(left + code.len()),
            };
            let jt = distance(on_true).map_err(|_| AssembleError::TooLong)?;
            let jf = distance(on_false).map_err(|_| AssembleError::TooLong)?;
            resolved.push((*operation, jt, jf, *k));
        }
        resolved.append(&mut code);
        code = resolved;
    }
    Ok(code)
}

type Step = (u16, To, To, u32);

/// Compares an argument, high half first.
fn test(condition: Condition) -> Result<Vec<Step>, AssembleError> {
    let argument = condition.argument;
    if argument > 5 {
        return Err(AssembleError::NoSuchArgument { argument });
    }
    let offset = OFFSET_ARGUMENTS + 8 * u32::from(argument);
    let low = |value: u64| value as u32;
    let high = |value: u64| (value >> 32) as u32;
    let load_low = (LOAD, To::Next, To::Next, offset);
    let load_high = (LOAD, To::Next, To::Next, offset + 4);
    // `order` decides on the low half when the high halves are equal; `negated` swaps the outcomes.
    let ordered = |order: u16, value: u64, negated: bool| {
        let (holds, fails) = if negated { (To::Fails, To::Holds) } else { (To::Holds, To::Fails) };
        vec![
            load_high,
            (JUMP_GREATER, holds, To::Next, high(value)),
            (JUMP_EQUAL, To::Next, fails, high(value)),
            load_low,
            (order, holds, fails, low(value)),
        ]
    };
    Ok(match condition.comparison {
        Comparison::Equal(value) => vec![
            load_high,
            (JUMP_EQUAL, To::Next, To::Fails, high(value)),
            load_low,
            (JUMP_EQUAL, To::Holds, To::Fails, low(value)),
        ],
        Comparison::NotEqual(value) => vec![
            load_high,
            (JUMP_EQUAL, To::Next, To::Holds, high(value)),
            load_low,
            (JUMP_EQUAL, To::Fails, To::Holds, low(value)),
        ],
        Comparison::Greater(value) => ordered(JUMP_GREATER, value, false),
        Comparison::LessOrEqual(value) => ordered(JUMP_GREATER, value, true),
        Comparison::GreaterOrEqual(value) => ordered(JUMP_GREATER_OR_EQUAL, value, false),
        Comparison::Less(value) => ordered(JUMP_GREATER_OR_EQUAL, value, true),
        Comparison::MaskedEqual { mask, value } => vec![
            load_high,
            (AND, To::Next, To::Next, high(mask)),
            (JUMP_EQUAL, To::Next, To::Fails, high(value)),
            load_low,
            (AND, To::Next, To::Next, low(mask)),
            (JUMP_EQUAL, To::Holds, To::Fails, low(value)),
        ],
    })
}

/// Runs a program as the kernel would; for tests.
#[cfg(any(test, feature = "interpreter"))]
pub mod interpreter {
    use super::*;

    pub struct Call {
        pub number: u32,
        pub arch: u32,
        pub arguments: [u64; 6],
    }

    pub fn native(number: u32, arguments: [u64; 6]) -> Call {
        Call { number, arch: AUDIT_ARCH_X86_64, arguments }
    }

    pub fn run(program: &[Instruction], call: &Call) -> u32 {
        let mut data = Vec::new();
        data.extend(call.number.to_le_bytes());
        data.extend(call.arch.to_le_bytes());
        data.extend([0; 8]);
        call.arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let (code, jt, jf, k) = program[at];
            let jump = |taken: bool| at + 1 + usize::from(if taken { jt } else { jf });
            at = match code {
                LOAD => {
                    let bytes = &data[k as usize..k as usize + 4];
                    accumulator = u32::from_le_bytes(bytes.try_into().unwrap());
                    at + 1
                }
                AND => {
                    accumulator &= k;
                    at + 1
                }
                JUMP => at + 1 + k as usize,
                JUMP_EQUAL => jump(accumulator == k),
                JUMP_GREATER => jump(accumulator > k),
                JUMP_GREATER_OR_EQUAL => jump(accumulator >= k),
                RETURN => return k,
                other => panic!("unknown instruction {other:#x}"),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::interpreter::{Call, native, run};
    use super::*;

    fn only(argument: u8, comparison: Comparison) -> Vec<Clause> {
        vec![Clause { conditions: vec![Condition { argument, comparison }], action: Action::ALLOW }]
    }

    #[test]
    fn comparisons_are_of_sixty_four_bits() {
        let samples = [
            0,
            1,
            0xffff_ffff,
            0x1_0000_0000,
            0x1_0000_0001,
            0x2_0000_0000,
            0x2_ffff_ffff,
            u64::MAX - 1,
            u64::MAX,
        ];
        for value in samples {
            let mask = 0xf_0000_000f;
            type Expected = fn(u64, u64) -> bool;
            let all: [(Comparison, Expected); 7] = [
                (Comparison::Equal(value), |a, v| a == v),
                (Comparison::NotEqual(value), |a, v| a != v),
                (Comparison::Greater(value), |a, v| a > v),
                (Comparison::GreaterOrEqual(value), |a, v| a >= v),
                (Comparison::Less(value), |a, v| a < v),
                (Comparison::LessOrEqual(value), |a, v| a <= v),
                (Comparison::MaskedEqual { mask, value }, |a, v| a & 0xf_0000_000f == v),
            ];
            for (comparison, expected) in all {
                for argument in 0..6 {
                    let filter = Filter {
                        calls: BTreeMap::from([(7, only(argument, comparison))]),
                        default: Action::errno(1),
                        beyond: None,
                        foreign: None,
                    };
                    let program = filter.assemble().unwrap();
                    for sample in samples {
                        let mut arguments = [0x5555_5555_5555_5555; 6];
                        arguments[usize::from(argument)] = sample;
                        let allowed = run(&program, &native(7, arguments)) == Action::ALLOW.value();
                        assert_eq!(allowed, expected(sample, value), "{comparison:?} of {sample:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn clauses_are_tried_in_order_and_conditions_all_hold() {
        let both = vec![
            Condition { argument: 0, comparison: Comparison::Equal(1) },
            Condition { argument: 1, comparison: Comparison::Equal(2) },
        ];
        let clauses = vec![
            Clause { conditions: both, action: Action::LOG },
            only(0, Comparison::Equal(1)).remove(0),
            Clause { conditions: vec![], action: Action::trap(9) },
            Clause { conditions: vec![], action: Action::KILL_THREAD },
        ];
        let filter = Filter {
            calls: BTreeMap::from([(0, clauses)]),
            default: Action::KILL_PROCESS,
            beyond: Some((0, Action::NO_SUCH_CALL)),
            foreign: None,
        };
        let program = filter.assemble().unwrap();
        let of = |number, first, second| run(&program, &native(number, [first, second, 0, 0, 0, 0]));
        assert_eq!(of(0, 1, 2), Action::LOG.value());
        assert_eq!(of(0, 1, 3), Action::ALLOW.value());
        assert_eq!(of(0, 4, 2), Action::trap(9).value());
        assert_eq!(of(1, 1, 2), Action::NO_SUCH_CALL.value());
    }

    #[test]
    fn every_number_gets_its_own_decision_even_in_a_long_program() {
        // Enough different decisions that jumps over a half do not fit into 8 bits.
        let errno = |number: u32| Action::errno(number % 100 + 2);
        let calls = (0..1500)
            .filter(|number| number % 3 != 0)
            .map(|number| (number, vec![Clause { conditions: vec![], action: errno(number) }]))
            .collect();
        let filter = Filter {
            calls,
            default: Action::ALLOW,
            beyond: Some((1600, Action::KILL_PROCESS)),
            foreign: None,
        };
        let program = filter.assemble().unwrap();
        for number in 0..1700 {
            let expected = match number {
                0..1500 if number % 3 != 0 => errno(number),
                0..=1600 => Action::ALLOW,
                _ => Action::KILL_PROCESS,
            };
            assert_eq!(run(&program, &native(number, [0; 6])), expected.value(), "{number}");
        }
    }

    #[test]
    fn foreign_calls_get_through_no_filter() {
        let calls = BTreeMap::from([(X32 + 1, vec![Clause { conditions: vec![], action: Action::ALLOW }])]);
        let filter = Filter { calls, default: Action::ALLOW, beyond: None, foreign: None };
        let program = filter.assemble().unwrap();
        for number in [X32, X32 + 1, u32::MAX] {
            assert_eq!(run(&program, &native(number, [0; 6])), Action::NO_SUCH_CALL.value());
        }
        let i386 = Call { number: 1, arch: 0x4000_0003, arguments: [0; 6] };
        assert_eq!(run(&program, &i386), Action::KILL_PROCESS.value());
    }

    #[test]
    fn what_cannot_be_assembled_is_refused() {
        let clause = only(0, Comparison::Equal(1)).remove(0);
        let filter = Filter {
            calls: BTreeMap::from([(0, vec![clause; PROGRAM_MAX])]),
            default: Action::ALLOW,
            beyond: None,
            foreign: None,
        };
        assert_eq!(filter.assemble(), Err(AssembleError::TooLong));
        let filter = Filter {
            calls: BTreeMap::from([(0, only(6, Comparison::Equal(1)))]),
            default: Action::ALLOW,
            beyond: None,
            foreign: None,
        };
        assert_eq!(filter.assemble(), Err(AssembleError::NoSuchArgument { argument: 6 }));
    }
}
