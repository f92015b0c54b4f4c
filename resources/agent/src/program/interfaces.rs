//! Network interfaces, by the old ioctls: they are all that a guest without tools needs. No state.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::sys;

/// A MAC address.
pub type Mac = [u8; 6];

/// The socket that the ioctls want.
fn socket() -> io::Result<OwnedFd> {
    // SAFETY: touches no memory.
    sys::owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
}

/// A request for an interface.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::other("the interface's name is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all zeros is a valid address.
    let mut any: libc::sockaddr = unsafe { std::mem::zeroed() };
    any.sa_family = libc::AF_INET as libc::sa_family_t;
    // `sockaddr_in`: two bytes of port, then the address.
    for (to, from) in any.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = from.cast_signed();
    }
    any
}

/// The interfaces of devices, in the order in which the kernel found them.
pub fn devices() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let device = |path: &Path| path.join("device").exists();
    let index = |path: &Path| fs::read_to_string(path.join("ifindex")).ok()?.trim().parse::<u32>().ok();
    let found = entries.flatten().filter(|entry| device(&entry.path()));
    let mut found: Vec<(u32, String)> = found
        .filter_map(|entry| Some((index(&entry.path())?, entry.file_name().into_string().ok()?)))
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, name)| name).collect()
}

/// An interface's MAC address.
pub fn mac(name: &str) -> io::Result<Mac> {
    let text = fs::read_to_string(Path::new("/sys/class/net").join(name).join("address"))?;
    parse_mac(text.trim()).ok_or_else(|| io::Error::other("it has no MAC address"))
}

/// `02:00:00:00:00:01`.
fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|pair| u8::from_str_radix(pair, 16).ok().filter(|_| pair.len() == 2 && !pair.starts_with('+')))
        .collect();
    bytes?.try_into().ok()
}

/// Give the devices these addresses, in order. One that has its own already is left alone.
pub fn set_macs(macs: &[String]) -> io::Result<()> {
    for (name, text) in devices().iter().zip(macs) {
        let wanted =
            parse_mac(text).ok_or_else(|| io::Error::other(format!("'{text}' is no MAC address")))?;
        if mac(name)? != wanted {
            set_mac(name, wanted)?;
        }
    }
    Ok(())
}

fn set_mac(name: &str, mac: Mac) -> io::Result<()> {
    let socket = socket()?;
    let mut request = request(name)?;
    // SAFETY: all zeros is a valid address.
    let mut hardware: libc::sockaddr = unsafe { std::mem::zeroed() };
    hardware.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in hardware.sa_data.iter_mut().zip(mac) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr = hardware;
    let mut again = request;
    match sys::ioctl(&socket, libc::SIOCSIFHWADDR, &mut request) {
        // A driver that changes it only while nothing runs. Addresses outlive that.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            set_up(name, false)?;
            let changed = sys::ioctl(&socket, libc::SIOCSIFHWADDR, &mut again);
            set_up(name, true)?;
            changed.map(drop)
        }
        changed => changed.map(drop),
    }
}

/// Let an interface work, or not.
pub fn set_up(name: &str, up: bool) -> io::Result<()> {
    let socket = socket()?;
    let mut request = request(name)?;
    sys::ioctl(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    let up_flag = libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel has just written this field of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = if up { flags | up_flag } else { flags & !up_flag };
    sys::ioctl(&socket, libc::SIOCSIFFLAGS, &mut request).map(drop)
}

/// Its address and network.
pub fn set_address(name: &str, ip: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    let socket = socket()?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_addr = address(ip);
    sys::ioctl(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = address(mask);
    sys::ioctl(&socket, libc::SIOCSIFNETMASK, &mut request).map(drop)
}

/// The longest packet, in bytes.
pub fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    sys::ioctl(&socket()?, libc::SIOCSIFMTU, &mut request).map(drop)
}

/// Reach everything else through `gateway`.
pub fn set_default_route(name: &str, gateway: Ipv4Addr) -> io::Result<()> {
    let socket = socket()?;
    let device = std::ffi::CString::new(name)?;
    // SAFETY: all zeros is a valid route.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // Only read; it lives as long as the call.
    route.rt_dev = device.as_ptr().cast_mut();
    match sys::ioctl(&socket, libc::SIOCADDRT, &mut route) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// The kernel's number of an interface.
pub fn index(name: &str) -> io::Result<i32> {
    let mut request = request(name)?;
    sys::ioctl(&socket()?, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: the kernel has just written this field of the union.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_six_pairs() {
        assert_eq!(parse_mac("02:00:00:aB:00:01"), Some([2, 0, 0, 0xab, 0, 1]));
        for wrong in
            ["", "02:00", "02:00:00:00:00:0g", "2:0:0:0:0:1", "+2:00:00:00:00:01", "02:00:00:00:00:00:01"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_that_are_too_long_are_no_interfaces() {
        assert!(set_up(&"x".repeat(16), true).is_err());
    }
}
