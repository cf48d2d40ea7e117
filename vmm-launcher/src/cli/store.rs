//! `nacre store`: disks that keep image layers from one sandbox to the next.

use super::args::StoreCommand;
use super::error::Failure;
use super::exit;
use super::manage::{print, table};
use super::progress::megabytes;
use crate::sandbox::stores::{Stores, StoresError};

pub fn store(command: &StoreCommand) -> Result<u8, Failure> {
    let failed = |error: StoresError| Failure::new("store", error).with_code(exit::FAILED);
    let stores = Stores::open().map_err(failed)?;
    match command {
        StoreCommand::Create { size, name } => {
            stores.create(name, *size).map_err(failed)?;
            println!("{name}");
        }
        StoreCommand::Ls { quiet } => {
            let list = stores.list().map_err(failed)?;
            if *quiet {
                return print(list.into_iter().map(|store| store.name));
            }
            let mut rows = vec![["NAME", "SIZE", "TAKEN", "STATE"].map(str::to_owned)];
            rows.extend(list.into_iter().map(|store| {
                let state = if store.in_use { "in use" } else { "free" };
                [store.name, megabytes(store.size), megabytes(store.taken), state.to_owned()]
            }));
            return print(table(&rows));
        }
        StoreCommand::Rm { names } => {
            for name in names {
                stores.remove(name).map_err(failed)?;
                println!("{name}");
            }
        }
    }
    Ok(0)
}
