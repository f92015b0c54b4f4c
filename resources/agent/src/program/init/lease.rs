//! The threads that get an address for each network interface and keep it.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::dhcp::{self, Lease, Reply, Wish};
use crate::interfaces::{self, Mac};
use crate::{identity, note, power, sys};

/// Interfaces that are cared for.
const MAX_INTERFACES: usize = 8;
/// How long the first answer is awaited; each further one twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(16);
/// How long a boot waits for an address before the guest is ready without one.
const BOOT: Duration = Duration::from_secs(3);
/// Tries before the next round.
const TRIES: u32 = 4;

/// What the threads and the link tell each other.
struct News {
    /// The first interface has got its address, or there is nothing to wait for.
    settled: bool,
    /// Goes up when addresses are to be asked for anew.
    round: u64,
}

static NEWS: Mutex<News> = Mutex::new(News { settled: true, round: 0 });
static TOLD: Condvar = Condvar::new();

fn news() -> MutexGuard<'static, News> {
    NEWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Care for every interface that there is. The first one is the way to everything else.
pub fn start() {
    let devices = interfaces::devices();
    news().settled = devices.is_empty();
    for (at, name) in devices.into_iter().take(MAX_INTERFACES).enumerate() {
        let keep = move || keep(&name, at == 0);
        let started = thread::Builder::new().name("lease".into()).stack_size(256 << 10).spawn(keep);
        if started.is_err() {
            settle();
        }
    }
}

/// Wait until the guest's first interface has an address; not for long, and not at all if that is not ours to do.
pub fn wait_for_first() {
    if power::is_init() {
        drop(TOLD.wait_timeout_while(news(), BOOT, |news| !news.settled));
    }
}

/// Ask for addresses anew: the guest is on another network now.
pub fn renew() {
    let mut news = news();
    news.round = news.round.wrapping_add(1);
    TOLD.notify_all();
}

fn settle() {
    news().settled = true;
    TOLD.notify_all();
}

/// For ever.
fn keep(name: &str, first: bool) {
    let mut said = false;
    loop {
        let round = news().round;
        let got = get(name).and_then(|lease| apply(name, &lease, first).map(|()| lease));
        let wait = match got {
            Ok(lease) => {
                said = false;
                // Half of the time, as RFC 2131 (4.4.5) has it; for ever is for ever.
                (lease.seconds != u32::MAX).then(|| Duration::from_secs(u64::from(lease.seconds / 2)))
            }
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    note(format_args!("{name} has no address: {error}"));
                }
                Some(LONGEST_WAIT)
            }
        };
        if first {
            settle();
        }
        // A wait for ever is one that is begun again.
        let wait = wait.unwrap_or(Duration::from_secs(86400));
        let (told, _) = TOLD
            .wait_timeout_while(news(), wait, |news| news.round == round)
            .unwrap_or_else(PoisonError::into_inner);
        drop(told);
    }
}

fn apply(name: &str, lease: &Lease, first: bool) -> io::Result<()> {
    interfaces::set_address(name, lease.address, lease.mask)?;
    if let Some(mtu) = lease.mtu {
        let _ = interfaces::set_mtu(name, mtu);
    }
    if !first {
        return Ok(());
    }
    if let Some(router) = lease.router {
        interfaces::set_default_route(name, router)?;
    }
    if !lease.name_servers.is_empty() {
        identity::write_aside(Path::new("/etc/resolv.conf"), &lease.resolv_conf())?;
    }
    Ok(())
}

/// Ask until there is a lease, or nobody answers.
fn get(name: &str) -> io::Result<Lease> {
    interfaces::set_up(name, true)?;
    let talk = Talk { socket: open(name)?, mac: interfaces::mac(name)?, index: interfaces::index(name)? };
    let mut wait = FIRST_WAIT;
    for _ in 0..TRIES {
        if let Some(Reply::Offer(offer)) = talk.say(Wish::Discover, wait)? {
            let wish = Wish::Request { address: offer.address, server: offer.server };
            if let Some(Reply::Ack(lease)) = talk.say(wish, wait)? {
                return Ok(lease);
            }
        }
        wait = wait.saturating_mul(2).min(LONGEST_WAIT);
    }
    Err(io::Error::other("no DHCP server answers"))
}

/// An interface's packets. Not a UDP socket: answers are to an address that is not there yet.
fn open(name: &str) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let protocol = (libc::ETH_P_IP as u16).to_be();
    // SAFETY: touches no memory.
    let socket = sys::owned(unsafe { libc::socket(libc::AF_PACKET, kind, protocol.into()) })?;
    let address = link_address(interfaces::index(name)?);
    // SAFETY: the pointer and length are of one address.
    let bound =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
    sys::check(bound)?;
    Ok(socket)
}

/// Everybody at the interface's network.
fn link_address(index: i32) -> libc::sockaddr_ll {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    address.sll_ifindex = index;
    address.sll_halen = 6;
    address.sll_addr = [255, 255, 255, 255, 255, 255, 0, 0];
    address
}

struct Talk {
    socket: OwnedFd,
    mac: Mac,
    index: i32,
}

impl Talk {
    /// Say something and wait for a reply.
    fn say(&self, wish: Wish, wait: Duration) -> io::Result<Option<Reply>> {
        let mut drawn = [0; 4];
        rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::INSECURE)?;
        let transaction = u32::from_ne_bytes(drawn);
        let packet = dhcp::packet(wish, transaction, self.mac);
        let to = link_address(self.index);
        // SAFETY: the pointers and lengths are of one packet and one address.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as u32,
            )
        };
        sys::check(sent as i64)?;
        let until = Instant::now() + wait;
        let mut bytes = [0; 2048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
            sys::poll(&mut [sys::polled(Some(self.socket.as_fd()), libc::POLLIN)], left)?;
            if let Ok(count) = rustix::io::read(&self.socket, &mut bytes)
                && let Some(reply) =
                    dhcp::reply(bytes.get(..count).unwrap_or_default(), transaction, self.mac)
            {
                return Ok(Some(reply));
            }
        }
    }
}
