//! What the C locale says of characters, in the tables that glibc looks it up in.

/// Entries of a table: one for each value of a char, signed or not, and for the end of a file, which is -1.
pub const CHARACTERS: usize = 384;

/// `<ctype.h>`'s bits: those of the first eight classes are in the upper byte.
pub const fn classes() -> [u16; CHARACTERS] {
    let mut table = [0; CHARACTERS];
    let mut place = 128;
    while place < 256 {
        let byte = (place - 128) as u8;
        let is_blank = matches!(byte, b' ' | b'\t');
        let classes = [
            byte.is_ascii_uppercase(),
            byte.is_ascii_lowercase(),
            byte.is_ascii_alphabetic(),
            byte.is_ascii_digit(),
            byte.is_ascii_hexdigit(),
            is_blank || matches!(byte, b'\n'..=b'\r'),
            byte.is_ascii_graphic() || byte == b' ',
            byte.is_ascii_graphic(),
            is_blank,
            byte.is_ascii_control(),
            byte.is_ascii_punctuation(),
            byte.is_ascii_alphanumeric(),
        ];
        let mut class = 0;
        while class < classes.len() {
            if classes[class] {
                table[place] |= 1 << ((class + 8) % 16);
            }
            class += 1;
        }
        place += 1;
    }
    table
}

/// Each character's upper case, or lower case.
pub const fn cases(upper: bool) -> [u32; CHARACTERS] {
    let mut table = [0; CHARACTERS];
    let mut place = 0;
    while place < CHARACTERS {
        let byte = place.wrapping_sub(128) as u8;
        let other = if upper { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        table[place] = other as u32;
        place += 1;
    }
    table[127] = u32::MAX;
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_have_the_classes_and_cases_of_the_c_locale() {
        unsafe extern "C" {
            fn __ctype_b_loc() -> *const *const u16;
            fn __ctype_toupper_loc() -> *const *const i32;
            fn __ctype_tolower_loc() -> *const *const i32;
        }
        let (classes, upper, lower) = (classes(), cases(true), cases(false));
        for place in 0..CHARACTERS {
            let offset = place as isize - 128;
            // SAFETY: the tables of the C library go from -128 to 255 (`<ctype.h>`).
            let known = unsafe {
                (
                    *(*__ctype_b_loc()).offset(offset),
                    *(*__ctype_toupper_loc()).offset(offset) as u32,
                    *(*__ctype_tolower_loc()).offset(offset) as u32,
                )
            };
            assert_eq!((classes[place], upper[place], lower[place]), known, "{offset}");
        }
    }
}
