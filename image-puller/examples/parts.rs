//! One part of a pull alone, with the same libraries as the pull and nothing around them: what a pull costs at least.
//!
//! ```text
//! cargo run -p nacre-puller --example parts -- sha256 FILE | decompress plain|gzip|zstd FILE | write BYTES FILE
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};

use nacre_puller::layer::{Compression, Decompressor, Limits};
use sha2::{Digest, Sha256};

/// Bytes that go through at once.
const PIECE_BYTES: usize = 256 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut buffer = vec![0; PIECE_BYTES];
    match words.as_slice() {
        ["sha256", file] => {
            let (mut file, mut hash) = (File::open(file)?, Sha256::new());
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    count => hash.update(&buffer[..count]),
                }
            }
            println!("{:x?}", hash.finalize());
        }
        ["decompress", form, file] => {
            let form = match *form {
                "plain" => Compression::Plain,
                "gzip" => Compression::Gzip,
                "zstd" => Compression::Zstd,
                _ => return Err("plain, gzip or zstd".into()),
            };
            let mut decompressor = Decompressor::new(File::open(file)?, form, &Limits::default())?;
            let mut total = 0;
            loop {
                match decompressor.read(&mut buffer)? {
                    0 => break,
                    count => total += count,
                }
            }
            println!("{total}");
        }
        ["write", bytes, file] => {
            buffer.fill(1);
            let (mut left, mut file) = (bytes.parse::<usize>()?, File::create(file)?);
            while left > 0 {
                let count = left.min(buffer.len());
                file.write_all(&buffer[..count])?;
                left -= count;
            }
        }
        _ => return Err("usage: parts sha256 FILE | decompress FORM FILE | write BYTES FILE".into()),
    }
    Ok(())
}
