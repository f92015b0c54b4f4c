//! What a program may expect of files, tried in a shared folder, one line a check that fails. The host looks at what is left.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

/// A check: its name, and what it does in a directory of its own.
type Check = (&'static str, fn(&Path) -> io::Result<()>);

const CHECKS: &[Check] = &[
    ("exclusive", exclusive),
    ("rename", rename),
    ("links", links),
    ("modes", modes),
    ("unlinked", unlinked),
    ("append", append),
    ("sparse", sparse),
    ("times", times),
    ("mapped", mapped),
    ("locks", locks),
    ("attributes", attributes),
    ("pipes", pipes),
    ("devices", devices),
    ("names", names),
    ("direct", direct),
];

/// Do them all below `dir`.
pub fn check(dir: &Path) -> io::Result<()> {
    for (name, check) in CHECKS {
        let own = dir.join(name);
        fs::create_dir(&own)?;
        match check(&own) {
            Ok(()) => println!("skiff-guest: folder {name}=ok"),
            Err(error) => println!("skiff-guest: problem folder-{name}={error:?}"),
        }
    }
    Ok(())
}

/// Every way to change what is below `dir`, which may not be changed.
pub fn check_readonly(dir: &Path) -> io::Result<()> {
    let file = dir.join("file");
    let refused = [
        ("create", File::create(dir.join("new")).map(drop)),
        ("open", OpenOptions::new().write(true).open(&file).map(drop)),
        ("mkdir", fs::create_dir(dir.join("new"))),
        ("remove", fs::remove_file(&file)),
        ("rename", fs::rename(&file, dir.join("new"))),
        ("link", fs::hard_link(&file, dir.join("new"))),
        ("symlink", symlink("x", dir.join("new"))),
        ("chmod", fs::set_permissions(&file, Permissions::from_mode(0o777))),
    ];
    for (name, result) in refused {
        let error = result.err().and_then(|error| error.raw_os_error());
        expect(error == Some(libc::EROFS), &format!("{name} ended with {error:?}"))?;
    }
    println!("skiff-guest: readonly refused={}", fs::read_to_string(&file)?.trim());
    Ok(())
}

fn expect(holds: bool, what: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(what.to_owned())) }
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// The C library's word for a path.
fn c(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// What a call without pointers left behind says.
fn done(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn exclusive(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    File::create_new(&path)?;
    expect(errno(File::create_new(&path)) == Some(libc::EEXIST), "a file was made twice")?;
    expect(errno(fs::create_dir(&path)) == Some(libc::EEXIST), "a directory was made over a file")?;
    expect(errno(fs::read_dir(&path)) == Some(libc::ENOTDIR), "a file was listed")?;
    expect(errno(File::create(dir)) == Some(libc::EISDIR), "a directory was opened to be written")
}

fn rename(dir: &Path) -> io::Result<()> {
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::write(&one, "1")?;
    fs::write(&two, "2")?;
    let flagged = |flags: u32| -> io::Result<i64> {
        let (one, two) = (c(&one)?, c(&two)?);
        let at = libc::AT_FDCWD;
        // SAFETY: both are C strings that live through the call.
        done(unsafe { libc::syscall(libc::SYS_renameat2, at, one.as_ptr(), at, two.as_ptr(), flags) })
    };
    expect(errno(flagged(libc::RENAME_NOREPLACE)) == Some(libc::EEXIST), "NOREPLACE replaced")?;
    flagged(libc::RENAME_EXCHANGE)?;
    expect(fs::read(&one)? == b"2" && fs::read(&two)? == b"1", "EXCHANGE did not")?;
    fs::rename(&one, &two)?;
    expect(fs::read(&two)? == b"2" && !one.exists(), "a rename did not replace")?;
    fs::create_dir_all(dir.join("d/e"))?;
    expect(errno(fs::rename(dir.join("d"), dir.join("d/e/f"))) == Some(libc::EINVAL), "d went into itself")
}

fn links(dir: &Path) -> io::Result<()> {
    let (file, hard, soft) = (dir.join("file"), dir.join("hard"), dir.join("soft"));
    fs::write(&file, "text")?;
    fs::hard_link(&file, &hard)?;
    let (one, other) = (file.metadata()?, hard.metadata()?);
    expect(one.ino() == other.ino() && other.nlink() == 2, "a hard link is another file")?;
    symlink("hard", &soft)?;
    expect(
        fs::read_link(&soft)? == Path::new("hard") && fs::read(&soft)? == b"text",
        "a link leads elsewhere",
    )?;
    symlink("loop", dir.join("loop"))?;
    expect(errno(fs::read(dir.join("loop"))) == Some(libc::ELOOP), "a loop ended")?;
    fs::remove_file(&file)?;
    expect(hard.metadata()?.nlink() == 1, "a removed name still counts")
}

fn modes(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    for mode in [0o7777, 0o000, 0o640, 0o4755] {
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        expect(path.metadata()?.mode() & 0o7777 == mode, &format!("the mode {mode:o} is another"))?;
    }
    let meta = path.metadata()?;
    // To give it to whom it belongs is no change.
    std::os::unix::fs::chown(&path, Some(meta.uid()), Some(meta.gid()))
}

fn unlinked(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(b"still here")?;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    expect(text == "still here" && file.metadata()?.nlink() == 0, "a removed file is gone while it is open")
}

fn append(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    for _ in 0..3 {
        File::options().append(true).create(true).open(&path)?.write_all(b"line\n")?;
    }
    File::options().write(true).open(&path)?.set_len(7)?;
    expect(fs::read(&path)? == b"line\nli", "what was appended and cut is something else")?;
    File::options().write(true).truncate(true).open(&path)?;
    expect(path.metadata()?.len() == 0, "a file that was emptied is not")
}

fn sparse(dir: &Path) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).create_new(true).open(dir.join("a"))?;
    file.write_all_at(b"end", 1 << 20)?;
    // SAFETY: calls without pointers.
    let data = done(unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA) })?;
    expect(data == 0 || data == 1 << 20, &format!("the data begin at {data}"))?;
    // SAFETY: as above.
    let made = done(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 2 << 20) }.into());
    expect(made.is_ok() || errno(made) == Some(libc::EOPNOTSUPP), "space cannot be made")?;
    file.seek(SeekFrom::Start(1 << 19))?;
    let mut byte = [1];
    file.read_exact(&mut byte)?;
    expect(byte == [0], "a hole has something in it")
}

fn times(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    let file = File::create(&path)?;
    let then = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(then)?;
    expect(path.metadata()?.modified()? == then, "a time was rounded")
}

fn mapped(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    fs::write(&path, vec![b'.'; 8192])?;
    let file = File::options().read(true).write(true).open(&path)?;
    let (read, share) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping of an open file, wherever the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 8192, read, share, file.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: 8192 bytes are mapped there, and nobody else has them; they are given back once.
    unsafe {
        at.cast::<u8>().add(5000).write_volatile(b'm');
        done(libc::msync(at, 8192, libc::MS_SYNC).into())?;
        done(libc::munmap(at, 8192).into())?;
    }
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000)?;
    expect(byte == [b'm'], "what was written to memory is not in the file")
}

fn locks(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    let one = File::create(&path)?;
    let other = File::options().write(true).open(&path)?;
    // SAFETY: calls without pointers.
    let flock = |file: &File, how| done(unsafe { libc::flock(file.as_raw_fd(), how) }.into());
    flock(&one, libc::LOCK_EX)?;
    let held = errno(flock(&other, libc::LOCK_EX | libc::LOCK_NB));
    expect(held == Some(libc::EWOULDBLOCK), "two have an flock")?;
    flock(&one, libc::LOCK_UN)?;
    let fcntl = |file: &File, kind: i32| {
        let lock = libc::flock {
            l_type: kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 10,
            l_len: 5,
            l_pid: 0,
        };
        // SAFETY: the lock lives through the call.
        done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }.into())
    };
    fcntl(&one, libc::F_WRLCK)?;
    let held = errno(fcntl(&other, libc::F_WRLCK));
    expect(held == Some(libc::EAGAIN) || held == Some(libc::EACCES), "two have a lock on a range")?;
    fcntl(&one, libc::F_UNLCK)?;
    fcntl(&other, libc::F_WRLCK).map(drop)
}

fn attributes(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    File::create(&path)?;
    let file = c(&path)?;
    let set = |name: &std::ffi::CStr| {
        // SAFETY: two C strings and four bytes, which live through the call.
        done(unsafe { libc::setxattr(file.as_ptr(), name.as_ptr(), b"blue".as_ptr().cast(), 4, 0) }.into())
    };
    match errno(set(c"user.colour")) {
        // Not every file system of a host has them.
        Some(libc::EOPNOTSUPP) => return Ok(()),
        error => expect(error.is_none(), &format!("{error:?}"))?,
    }
    let mut value = [0_u8; 16];
    // SAFETY: as above; the buffer is as long as it is said to be.
    let len = unsafe {
        libc::getxattr(file.as_ptr(), c"user.colour".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    expect(len == 4 && &value[..4] == b"blue", "an attribute is another")?;
    expect(errno(set(c"trusted.colour")) == Some(libc::EOPNOTSUPP), "a trusted attribute was set")
}

fn pipes(dir: &Path) -> io::Result<()> {
    let path = dir.join("pipe");
    let name = c(&path)?;
    // SAFETY: a C string that lives through the call.
    done(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }.into())?;
    let writer = std::thread::spawn({
        let path = path.clone();
        move || File::options().write(true).open(path)?.write_all(b"through")
    });
    let text = fs::read_to_string(&path)?;
    writer.join().map_err(|_| io::Error::other("the writer died"))??;
    let socket = std::os::unix::net::UnixListener::bind(dir.join("socket"))?;
    drop(socket);
    expect(text == "through", "a pipe changes what goes through it")
}

fn devices(dir: &Path) -> io::Result<()> {
    let path = c(&dir.join("mem"))?;
    // SAFETY: a C string that lives through the call.
    let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 1)) };
    expect(errno(done(made.into())) == Some(libc::EPERM), "a device was made")
}

fn names(dir: &Path) -> io::Result<()> {
    let long = "n".repeat(255);
    File::create(dir.join(&long))?;
    expect(errno(File::create(dir.join(format!("{long}n")))) == Some(libc::ENAMETOOLONG), "too long a name")?;
    let odd = std::ffi::OsStr::from_bytes(b"\xff new\nline");
    File::create(dir.join(odd))?;
    let mut found = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    found.sort();
    expect(found.len() == 2 && found.iter().any(|name| name == odd), "names come back as others")
}

fn direct(dir: &Path) -> io::Result<()> {
    let path = dir.join("a");
    let file = File::options().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path)?;
    file.write_all_at(&[b'd'; 4096], 0)?;
    drop(file);
    expect(fs::read(&path)? == [b'd'; 4096], "what went past the cache is something else")
}
