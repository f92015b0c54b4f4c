//! Tests of what the parts of a spec are called in text and in tables.

use std::fmt::{Debug, Display};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

fn wrong<T: FromStr<Err = ParseError> + Debug>(text: &str) -> String {
    text.parse::<T>().unwrap_err().to_string()
}

fn net(text: &str) -> NetSpec {
    text.parse().unwrap()
}

#[test]
fn memory_has_a_size_and_a_kind() {
    let memory = |size, hugepages, overcommit| MemorySpec { size: Memory(size), hugepages, overcommit };
    for (text, wanted, shown) in [
        ("2G", memory(2 << 30, false, false), "2G"),
        ("size=512M", memory(512 << 20, false, false), "512M"),
        ("2G,hugepages=on,overcommit=on", memory(2 << 30, true, true), "2G,hugepages=on,overcommit=on"),
        ("hugepages,size=1G,overcommit=off", memory(1 << 30, true, false), "1G,hugepages=on"),
    ] {
        let read: MemorySpec = text.parse().unwrap();
        assert_eq!((read, read.to_string().as_str()), (wanted, shown), "{text}");
    }
    for (text, message) in [
        ("", "'' says not how much memory: write a size such as 2G"),
        ("hugepages=on", "'hugepages=on' says not how much memory: write a size such as 2G"),
        ("2X", "'2X' is not an amount of memory: write a number with K, M or G, such as 512M"),
        ("2G,hugepage=on", "the memory has no key 'hugepage': did you mean 'hugepages'?"),
        ("2G,hugepages=2M", "the memory's hugepages cannot be '2M': write on or off"),
        ("2G,size=1G", "the memory's size is given twice: keep one"),
    ] {
        assert_eq!(wrong::<MemorySpec>(text), message);
    }
}

#[test]
fn a_disk_is_read_with_all_its_options() {
    let disk: DiskSpec =
        "path=/d=1,,2.img,readonly=on,direct,layers=off,serial=S1,queues=2,io=plain".parse().unwrap();
    let wanted = DiskSpec {
        readonly: true,
        direct: true,
        layers: Some(false),
        serial: Some("S1".to_owned()),
        queues: Some(2),
        io: DiskIo::Plain,
        ..DiskSpec::new("/d=1,2.img")
    };
    assert_eq!(disk, wanted);
    assert_eq!("path=a".parse::<DiskSpec>().unwrap(), DiskSpec::new("a"));
    assert_eq!("readonly=off,path=a".parse::<DiskSpec>().unwrap(), DiskSpec::new("a"));
    let shown = "path=/d=1,,2.img,readonly=on,direct=on,layers=off,serial=S1,queues=2,io=plain";
    assert_eq!(disk.to_string(), shown);
    for (layers, text) in [(true, "on"), (false, "off")] {
        let disk: DiskSpec = format!("path=a,layers={text}").parse().unwrap();
        assert_eq!(disk, DiskSpec { layers: Some(layers), ..DiskSpec::new("a") });
        assert!(disk.to_string().contains(&format!(",layers={text}")));
    }
}

#[test]
fn a_wrong_disk_is_told_what_to_write() {
    for (text, message) in [
        ("", "'' names no file: write path=FILE, as in path=disk.img,readonly=on"),
        ("disk.img", "'disk.img' names no file: write path=FILE, as in path=disk.img,readonly=on"),
        ("readonly=on", "'readonly=on' names no file: write path=FILE, as in path=disk.img,readonly=on"),
        ("path=", "the disk's path cannot be '': write path=FILE"),
        ("path", "the disk's path has no value: write path=FILE"),
        ("path=a,", "'path=a,' has a comma too many: take it out, or double it if it belongs to a name"),
        ("path=a,path=b", "the disk's path is given twice: keep one"),
        ("path=a,read-only=on", "a disk has no key 'read-only': did you mean 'readonly'?"),
        ("path=a,readonly=yes", "the disk's readonly cannot be 'yes': write on or off"),
        ("path=a,queues=many", "the disk's queues cannot be 'many': write a number from 1 to 16"),
        ("path=a,queues=+2", "the disk's queues cannot be '+2': write a number from 1 to 16"),
        ("path=a,queues=65536", "the disk's queues cannot be '65536': write a number from 1 to 16"),
        ("path=a,io=aio", "the disk's io cannot be 'aio': write auto, uring or plain"),
    ] {
        assert_eq!(wrong::<DiskSpec>(text), message);
    }
    let strange = wrong::<DiskSpec>("path=a,zzz=1");
    assert!(strange.starts_with("a disk has no key 'zzz': there are path, readonly, "), "{strange}");
}

#[test]
fn a_burst_is_of_the_bandwidth_or_of_the_requests() {
    let limit = |text: &str| net(&format!("user,{text}")).limit;
    let megabytes = |count: u64| Some(Memory(count << 20));
    let both = LimitSpec { bandwidth: megabytes(100), ops: Some(1000), ..LimitSpec::default() };
    assert_eq!(limit("bandwidth=100M,ops=1000"), both);
    assert_eq!(
        limit("burst=5M,bandwidth=100M,ops=1000"),
        LimitSpec { bandwidth_burst: megabytes(5), ..both }
    );
    let ops = LimitSpec { ops: Some(7), ops_burst: Some(9), ..LimitSpec::default() };
    assert_eq!(limit("ops=7,burst=9"), ops);
    for (text, message) in [
        ("burst=5M", "the network's burst belongs to no rate: give bandwidth or ops with it"),
        (
            "bandwidth=1M,burst=1M,bandwidth-burst=1M",
            "the network's bandwidth-burst is given twice: keep one",
        ),
        ("ops=1,burst=1,ops-burst=1", "the network's ops-burst is given twice: keep one"),
        ("ops=1,burst=1M", "the network's burst cannot be '1M': write a number of requests"),
        (
            "bandwidth=fast",
            "the network's bandwidth cannot be 'fast': write a number of bytes with K, M or G, such as 100M",
        ),
    ] {
        assert_eq!(wrong::<NetSpec>(&format!("user,{text}")), message);
    }
}

#[test]
fn a_network_is_read_with_all_its_options() {
    let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x5f]);
    let all = "tap=tap0,mac=52:54:00:12:34:5F,mtu=9000,queues=4,bandwidth=100M,bandwidth-burst=1G,ops=5,ops-burst=6";
    let wanted = NetSpec {
        backend: NetBackend::Tap("tap0".to_owned()),
        mac: Some(mac),
        mtu: Some(9000),
        queues: Some(4),
        limit: LimitSpec {
            bandwidth: Some(Memory(100 << 20)),
            bandwidth_burst: Some(Memory(1 << 30)),
            ops: Some(5),
            ops_burst: Some(6),
        },
    };
    assert_eq!(net(all), wanted);
    assert_eq!(wanted.to_string(), all.replace("5F", "5f"));
    assert_eq!(net("fd=5"), NetSpec::new(NetBackend::Fd(5)));
    for text in ["user", "user=on", "user=true"] {
        assert_eq!(net(text), NetSpec::new(NetBackend::User));
    }
    assert_eq!(net("user").to_string(), "user");
}

#[test]
fn a_wrong_network_is_told_what_to_write() {
    for (text, message) in [
        ("", "'' says not where the network leads: write tap=NAME, fd=N or user"),
        ("tap0", "'tap0' says not where the network leads: write tap=NAME, fd=N or user"),
        ("mtu=1500", "'mtu=1500' says not where the network leads: write tap=NAME, fd=N or user"),
        ("usr", "a network has no key 'usr': did you mean 'user'?"),
        ("tap", "the network's tap has no value: write the name of a tap device"),
        ("fd=-1", "the network's fd cannot be '-1': write the number of an open file descriptor"),
        (
            "fd=9999999999",
            "the network's fd cannot be '9999999999': write the number of an open file descriptor",
        ),
        ("user=off", "the network's user cannot be 'off': write user alone, or leave it out"),
        (
            "user,tap=t",
            "a network leads to one place: write one of tap=NAME, fd=N and user, or a network for each",
        ),
        ("user,user", "the network's user is given twice: keep one"),
        ("user,mtu=big", "the network's mtu cannot be 'big': write a number from 68 to 65520"),
        (
            "user,mac=1",
            "'1' is not a device's MAC address: write six bytes such as 52:54:00:12:34:56, the first of them even",
        ),
    ] {
        assert_eq!(wrong::<NetSpec>(text), message);
    }
}

#[test]
fn a_mac_is_one_devices() {
    for text in ["01:00:00:00:00:00", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "2:0:0:0:0:1"] {
        assert!(text.parse::<Mac>().is_err(), "{text}");
    }
    for text in ["02:00:00:00:00", "02:00:00:00:00:00:00", "02-00-00-00-00-01", "+2:00:00:00:00:01"] {
        assert!(text.parse::<Mac>().is_err(), "{text}");
    }
}

#[test]
fn a_vsock_is_a_path_with_or_without_its_key() {
    let vsock = |path: &str, cid| VsockSpec { path: Some(path.into()), cid };
    let own = |cid| VsockSpec { path: None, cid };
    for (text, wanted) in [
        ("/run/v.sock", vsock("/run/v.sock", 3)),
        ("path=/run/v.sock", vsock("/run/v.sock", 3)),
        ("/run/a=b.sock,cid=7", vsock("/run/a=b.sock", 7)),
        ("cid=4294967294,path=v,,w", vsock("v,w", 4_294_967_294)),
        ("v.sock", vsock("v.sock", 3)),
        ("auto", own(3)),
        ("auto,cid=9", own(9)),
        ("path=auto", vsock("auto", 3)),
    ] {
        assert_eq!(text.parse::<VsockSpec>().unwrap(), wanted, "{text}");
    }
    for (text, message) in [
        ("", "'' names no socket: write auto, or path=FILE, as in path=/run/vm.sock"),
        ("cid=3", "'cid=3' names no socket: write auto, or path=FILE, as in path=/run/vm.sock"),
        ("/v,cid", "the vsock's cid has no value: write a number from 3 to 4294967294"),
        ("/v,cid=4294967296", "the vsock's cid cannot be '4294967296': write a number from 3 to 4294967294"),
        ("/v,ciid=5", "a vsock has no key 'ciid': did you mean 'cid'?"),
        ("auto,path=/w", "a vsock has one socket: write auto or path=FILE"),
        ("auto=off", "the vsock's auto cannot be 'off': write auto alone, or path=FILE"),
        ("/v,path=/w", "the vsock's path is given twice: keep one"),
    ] {
        assert_eq!(wrong::<VsockSpec>(text), message);
    }
}

#[test]
fn a_forwarded_port_is_read_as_it_is_written() {
    let port = |address: Option<&str>, host, guest, protocol| PortForward {
        address: address.map(|address| address.parse().unwrap()),
        host,
        guest,
        protocol,
    };
    for (text, wanted) in [
        ("8080:80", port(None, 8080, 80, Protocol::Tcp)),
        ("127.0.0.1:8080:80/udp", port(Some("127.0.0.1"), 8080, 80, Protocol::Udp)),
        ("[::1]:1:65535", port(Some("::1"), 1, 65535, Protocol::Tcp)),
    ] {
        let read: PortForward = text.parse().unwrap();
        assert_eq!((read.to_string().as_str(), read), (text, wanted));
    }
    assert_eq!("1:2/tcp".parse::<PortForward>().unwrap().to_string(), "1:2");
    for text in [
        "",
        "80",
        "0:80",
        "80:0",
        "80:65536",
        "a:80:80",
        "localhost:80:80",
        "80:80/sctp",
        ":80:80",
        "80:80/",
        "+1:2",
    ] {
        assert!(wrong::<PortForward>(text).contains("forwards no port: write HOST:GUEST"), "{text}");
    }
}

/// In TOML a table needs a key.
#[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
struct Held<T> {
    part: T,
}

#[test]
fn a_table_says_the_same_as_text_and_is_as_strict() {
    let table = |text: &str| toml::from_str::<Held<NetSpec>>(&format!("part = {{ {text} }}"));
    let read = table("user = true, mtu = 1400, bandwidth = 1048576, ops = 10, burst = \"2M\"").unwrap();
    assert_eq!(read.part, net("user,mtu=1400,bandwidth=1M,ops=10,burst=2M"));
    for (text, message) in [
        ("mtu = 1400", "a network says not where the network leads: write tap=NAME, fd=N or user"),
        ("usr = true", "a network has no key 'usr': did you mean 'user'?"),
        ("fd = -1", "the network's fd cannot be '-1': write the number of an open file descriptor"),
        ("tap = 5", "the network's tap cannot be '5': write the name of a tap device"),
        (
            "user = true, mtu = 1.5",
            "invalid type: floating point `1.5`, expected text, a number, true or false",
        ),
        ("user = true, mtu = [1]", "invalid type: sequence, expected text, a number, true or false"),
        ("user = false", "the network's user cannot be 'off': write user alone, or leave it out"),
    ] {
        assert_eq!(table(text).unwrap_err().message(), message, "{text}");
    }
    let number = toml::from_str::<Held<NetSpec>>("part = 5").unwrap_err();
    assert_eq!(
        number.message(),
        "invalid type: integer `5`, expected a table or a text such as \"tap=tap0\""
    );
}

#[test]
#[cfg(unix)]
fn a_path_that_is_not_utf8_is_not_written_as_another() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;
    let disk = DiskSpec::new(OsString::from_vec(b"/a\xff".to_vec()));
    assert!(toml::to_string(&Held { part: disk }).is_err());
}

fn some_path() -> impl Strategy<Value = PathBuf> {
    "[a-z,=/é \"]{1,12}".prop_map(PathBuf::from)
}

fn some_limit() -> impl Strategy<Value = LimitSpec> {
    let bytes = || option::of(any::<u64>().prop_map(Memory));
    // A table's numbers are those of TOML, which has a sign.
    let count = || option::of(0..=i64::MAX.unsigned_abs());
    (bytes(), bytes(), count(), count()).prop_map(|(bandwidth, bandwidth_burst, ops, ops_burst)| LimitSpec {
        bandwidth,
        bandwidth_burst,
        ops,
        ops_burst,
    })
}

fn some_disk() -> impl Strategy<Value = DiskSpec> {
    let io = prop_oneof![Just(DiskIo::Auto), Just(DiskIo::Uring), Just(DiskIo::Plain)];
    let switches =
        (any::<bool>(), any::<Option<bool>>(), any::<bool>(), option::of(any::<u64>().prop_map(Memory)));
    let rest = (switches, option::of("[!-~]{1,20}"), any::<Option<u16>>(), io);
    (some_path(), rest, some_limit()).prop_map(|(path, (switches, serial, queues, io), limit)| {
        let (readonly, layers, direct, size) = switches;
        DiskSpec { path, readonly, layers, size, direct, serial, queues, io, limit }
    })
}

fn some_net() -> impl Strategy<Value = NetSpec> {
    let tap = "[a-z,=0-9]{1,15}".prop_map(NetBackend::Tap);
    let backend = prop_oneof![tap, (0..=i32::MAX).prop_map(NetBackend::Fd), Just(NetBackend::User)];
    let mac = option::of((1..=255_u8).prop_map(|last| Mac([2, 0, 0xa, 0, 0, last])));
    (backend, mac, any::<Option<u16>>(), any::<Option<u16>>(), some_limit())
        .prop_map(|(backend, mac, mtu, queues, limit)| NetSpec { backend, mac, mtu, queues, limit })
}

fn some_memory() -> impl Strategy<Value = MemorySpec> {
    (any::<u64>(), any::<bool>(), any::<bool>()).prop_map(|(size, hugepages, overcommit)| MemorySpec {
        size: Memory(size),
        hugepages,
        overcommit,
    })
}

fn some_port() -> impl Strategy<Value = PortForward> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (any::<Option<IpAddr>>(), 1..=u16::MAX, 1..=u16::MAX, protocol)
        .prop_map(|(address, host, guest, protocol)| PortForward { address, host, guest, protocol })
}

/// `part` comes back from its text, and from TOML.
fn comes_back<T>(part: T) -> Result<(), TestCaseError>
where
    T: FromStr<Err = ParseError> + Display + Debug + PartialEq + Serialize + DeserializeOwned,
{
    let text = part.to_string();
    prop_assert_eq!(&text.parse::<T>().map_err(|error| TestCaseError::fail(error.to_string()))?, &part);
    let held = Held { part };
    let table = toml::to_string(&held).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let again = toml::from_str(&table).map_err(|error| TestCaseError::fail(format!("{error} in {table}")))?;
    prop_assert_eq!(held, again);
    Ok(())
}

proptest! {
    #[test]
    fn every_disk_comes_back(disk in some_disk()) {
        comes_back(disk)?;
    }

    #[test]
    fn every_network_comes_back(net in some_net()) {
        comes_back(net)?;
    }

    #[test]
    fn every_memory_comes_back(memory in some_memory()) {
        comes_back(memory)?;
    }

    #[test]
    fn every_vsock_comes_back(path in proptest::option::of(some_path()), cid in any::<u32>()) {
        comes_back(VsockSpec { path, cid })?;
    }

    #[test]
    fn every_port_comes_back(port in some_port()) {
        comes_back(port)?;
    }

    #[test]
    fn no_text_is_more_than_an_error(text in "([a-z=,:/.-]|path|tap|fd|user|burst|[0-9]|\\PC){0,24}") {
        // Whatever is understood can be written, and means the same.
        if let Ok(disk) = text.parse::<DiskSpec>() {
            comes_back(disk)?;
        }
        if let Ok(net) = text.parse::<NetSpec>() {
            comes_back(net)?;
        }
        if let Ok(memory) = text.parse::<MemorySpec>() {
            comes_back(memory)?;
        }
        if let Ok(vsock) = text.parse::<VsockSpec>() {
            comes_back(vsock)?;
        }
        if let Ok(port) = text.parse::<PortForward>() {
            comes_back(port)?;
        }
        let _ = (text.parse::<Mac>(), text.parse::<Stream>(), text.parse::<Transport>());
    }
}
