//! Whether the machine runs or rests: where its processors and the threads of its devices wait while it is paused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nacre_protocols::host_vmm::Exits;

/// After this a processor is told again to leave the guest: the first word may have come just before it entered.
const KICK_PAUSE: Duration = Duration::from_millis(1);

/// One for the whole machine.
pub struct Life {
    /// Read before every entry into the guest.
    pausing: AtomicBool,
    places: Mutex<Places>,
    changed: Condvar,
    exits: Vec<ExitCounters>,
}

#[derive(Default)]
struct Places {
    /// Processors that wait.
    parked: usize,
    /// Processors that have leave to run, from the first on.
    may_run: usize,
    /// Devices that may not begin anything.
    resting: bool,
    /// Device threads that are at work.
    working: usize,
}

/// Something did not come to rest in time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Restless {
    #[error("{0} processors do not leave the guest")]
    Processors(usize),
    #[error("{0} devices do not finish what they do")]
    Devices(usize),
}

impl Life {
    /// Of so many processors, the first of which may run.
    pub fn new(processors: usize, may_run: usize) -> Self {
        Self {
            pausing: AtomicBool::new(false),
            places: Mutex::new(Places { may_run, ..Places::default() }),
            changed: Condvar::new(),
            exits: std::iter::repeat_with(ExitCounters::default).take(processors).collect(),
        }
    }

    pub fn is_paused(&self) -> bool {
        self.pausing.load(Ordering::Acquire)
    }

    /// Returns when all rests. `kick` makes every processor leave the guest; it is called until all have.
    ///
    /// # Errors
    /// Not within `limit`; then everything goes on.
    pub fn pause(&self, limit: Duration, kick: impl Fn()) -> Result<(), Restless> {
        let until = Instant::now() + limit;
        self.pausing.store(true, Ordering::Release);
        let mut places = self.places();
        while places.parked < self.exits.len() {
            if Instant::now() >= until {
                let restless = Restless::Processors(self.exits.len() - places.parked);
                drop(places);
                self.resume();
                return Err(restless);
            }
            kick();
            places = self.wait(places, KICK_PAUSE);
        }
        places.resting = true;
        while places.working > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let restless = Restless::Devices(places.working);
                drop(places);
                self.resume();
                return Err(restless);
            }
            places = self.wait(places, left);
        }
        Ok(())
    }

    pub fn resume(&self) {
        self.pausing.store(false, Ordering::Release);
        self.places().resting = false;
        self.changed.notify_all();
    }

    /// A processor that has left the guest waits here until it may go on.
    pub fn park(&self) {
        let mut places = self.places();
        places.parked += 1;
        self.changed.notify_all();
        while self.is_paused() {
            places = self.changed.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
        places.parked -= 1;
    }

    /// Gives so many processors leave to run, from the first on; it is never taken back.
    pub fn let_run(&self, processors: usize) {
        let mut places = self.places();
        places.may_run = places.may_run.max(processors);
        self.changed.notify_all();
    }

    /// How many processors have leave to run.
    pub fn may_run(&self) -> usize {
        self.places().may_run
    }

    /// A processor that has not been in the guest waits here until it may; while it does, it rests.
    pub fn wait_for_leave(&self, processor: u8) {
        let mut places = self.places();
        places.parked += 1;
        self.changed.notify_all();
        while places.may_run <= usize::from(processor) || self.is_paused() {
            places = self.changed.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
        places.parked -= 1;
    }

    /// A device's thread is about to work, and does so until it drops what it gets.
    pub fn work(&self) -> Work<'_> {
        let mut places = self.places();
        while places.resting {
            places = self.changed.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
        places.working += 1;
        Work(self)
    }

    /// The counters of one processor.
    pub fn exits(&self, processor: u8) -> Option<&ExitCounters> {
        self.exits.get(usize::from(processor))
    }

    pub fn all_exits(&self) -> Vec<Exits> {
        self.exits.iter().map(ExitCounters::read).collect()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, places: MutexGuard<'a, Places>, limit: Duration) -> MutexGuard<'a, Places> {
        self.changed.wait_timeout(places, limit).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A device at work.
pub struct Work<'a>(&'a Life);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let mut places = self.0.places();
        places.working -= 1;
        if places.resting {
            self.0.changed.notify_all();
        }
    }
}

/// How often a processor left the guest, and why.
#[derive(Default)]
pub struct ExitCounters {
    pub mmio_read: AtomicU64,
    pub mmio_write: AtomicU64,
    pub port_in: AtomicU64,
    pub port_out: AtomicU64,
    pub interrupted: AtomicU64,
    pub other: AtomicU64,
}

impl ExitCounters {
    fn read(&self) -> Exits {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Exits {
            mmio_read: load(&self.mmio_read),
            mmio_write: load(&self.mmio_write),
            port_in: load(&self.port_in),
            port_out: load(&self.port_out),
            interrupted: load(&self.interrupted),
            other: load(&self.other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_pause_waits_for_processors_and_devices_and_resume_lets_them_go() {
        let life = Arc::new(Life::new(2, 2));
        let turns = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let (life, turns, ended) = (life.clone(), turns.clone(), ended.clone());
                std::thread::spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        match number {
                            2 => drop(life.work()),
                            _ if life.is_paused() => life.park(),
                            _ => {}
                        }
                        turns.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            life.pause(LONG, || {}).unwrap();
            life.pause(LONG, || {}).unwrap();
            assert!(life.is_paused());
            let before = turns.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            // Each may have been between its work and its count.
            assert!(turns.load(Ordering::Relaxed) <= before + 3);
            let before = turns.load(Ordering::Relaxed);
            life.resume();
            while turns.load(Ordering::Relaxed) < before + 10 {
                std::thread::yield_now();
            }
        }
        ended.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_processor_without_leave_rests_until_it_has_it() {
        let life = Arc::new(Life::new(2, 1));
        let (sender, ran) = std::sync::mpsc::channel();
        for processor in 0..2 {
            let (life, sender) = (life.clone(), sender.clone());
            std::thread::spawn(move || {
                life.wait_for_leave(processor);
                sender.send(processor).unwrap();
                while !life.is_paused() {
                    std::thread::yield_now();
                }
                life.park();
            });
        }
        assert_eq!(ran.recv_timeout(LONG), Ok(0));
        // It does not hold up a pause, and does not run in one.
        life.pause(LONG, || {}).unwrap();
        life.let_run(2);
        assert!(ran.recv_timeout(SOON).is_err());
        life.resume();
        assert_eq!(ran.recv_timeout(LONG), Ok(1));
        life.let_run(1);
        assert_eq!(life.may_run(), 2);
    }

    #[test]
    fn who_does_not_rest_ends_the_pause() {
        let life = Life::new(1, 1);
        let kicks = AtomicU64::new(0);
        let kick = || {
            kicks.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(life.pause(SOON, kick), Err(Restless::Processors(1)));
        assert!(kicks.load(Ordering::Relaxed) > 1);
        assert!(!life.is_paused());
        let life = Life::new(0, 0);
        let work = life.work();
        assert_eq!(life.pause(SOON, || {}), Err(Restless::Devices(1)));
        drop(work);
        assert_eq!(life.pause(SOON, || {}), Ok(()));
    }
}
