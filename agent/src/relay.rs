//! A terminal whose streams are connections of the host's: what comes from the one goes to the other, through pipes that init
//! holds. The kernel copies it (splice(2)), a connection that is full holds the terminal back, and an agent that dies between two steps
//! leaves what is under way to the next.

use crate::process::DRAIN_MAX;
use crate::stream::{READ_MAX, Stream};
use nacre_protocols::agent_init::ExitStatus;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

type Exit = watch::Receiver<Option<ExitStatus>>;

pub struct Relay {
    /// For what comes from the host: read end and write end.
    stage: (OwnedFd, OwnedFd),
    input: Option<AsyncFd<OwnedFd>>,
    output: Option<AsyncFd<OwnedFd>>,
}

impl Relay {
    /// Out of the descriptors behind those of the terminal, in the order of the edge; `None` where nothing is the host's.
    pub fn new(
        [input, output]: [bool; 2],
        fds: &mut impl Iterator<Item = OwnedFd>,
    ) -> io::Result<Option<Self>> {
        if !input && !output {
            return Ok(None);
        }
        let Some(stage) = fds.next().zip(fds.next()) else { return Ok(None) };
        let mut next = |given: bool| {
            let connection = if given { fds.next() } else { None };
            connection.map(crate::watch).transpose()
        };
        Ok(Some(Self { stage, input: next(input)?, output: next(output)? }))
    }

    /// Until the terminal has ended, or the host has closed both.
    pub async fn run(self, master: Rc<Stream>, exit: Exit) {
        let Self { stage, input, output } = self;
        let from_host = async {
            let Some(input) = &input else { return Ok(()) };
            let way = Way { from: input, stage: &stage, to: &master.fd, is_input: true };
            way.pour(exit.clone()).await
        };
        let to_host = async {
            let (Some(output), Some(stage)) = (&output, &master.stage) else { return Ok(()) };
            let way = Way { from: &master.fd, stage, to: output, is_input: false };
            way.pour(exit.clone()).await?;
            // Init has it open, too: only this tells the host that there is no more.
            rustix::net::shutdown(output.get_ref(), rustix::net::Shutdown::Write)
        };
        for result in <[_; 2]>::from(tokio::join!(from_host, to_host)) {
            match result {
                Ok(()) | Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {}
                Err(errno) => crate::say(&format!("a terminal's connection: {errno}")),
            }
        }
    }
}

/// One direction.
struct Way<'a> {
    from: &'a AsyncFd<OwnedFd>,
    /// Whatever is in it is on its way.
    stage: &'a (OwnedFd, OwnedFd),
    to: &'a AsyncFd<OwnedFd>,
    /// What comes in is of no use to a process that has ended; what it said is.
    is_input: bool,
}

impl Way<'_> {
    async fn pour(&self, mut exit: Exit) -> Result<(), Errno> {
        let (read, write) = self.stage;
        let mut drained = 0;
        loop {
            while rustix::io::ioctl_fionread(read)? > 0 {
                match splice(read, None, self.to.get_ref(), None, READ_MAX, SpliceFlags::NONBLOCK) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) if self.is_input && exit.borrow_and_update().is_some() => return Ok(()),
                    Err(Errno::AGAIN) => self.writable(&mut exit).await?,
                    Err(errno) => return Err(errno),
                }
            }
            let has_exited = exit.borrow_and_update().is_some();
            if has_exited && (self.is_input || drained >= DRAIN_MAX) {
                return Ok(());
            }
            match splice(self.from.get_ref(), None, write, None, READ_MAX, SpliceFlags::NONBLOCK) {
                Ok(0) => return Ok(()),
                Ok(count) if has_exited => drained = drained.saturating_add(count as u64),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if has_exited => return Ok(()),
                Err(Errno::AGAIN) => tokio::select! {
                    ready = self.from.readable() => ready.map_err(|_| Errno::IO)?.clear_ready(),
                    changed = exit.changed() => if changed.is_err() { return Ok(()) },
                },
                // A terminal that nobody has open any more.
                Err(Errno::IO) if !self.is_input => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// What arrives after a mark was cleared sets it anew: cleared before the next try.
    async fn writable(&self, exit: &mut Exit) -> Result<(), Errno> {
        tokio::select! {
            ready = self.to.writable() => ready.map_err(|_| Errno::IO)?.clear_ready(),
            // What the process has said is still of use then.
            changed = exit.changed(), if self.is_input => if changed.is_err() { return Err(Errno::PIPE) },
        }
        Ok(())
    }
}
