use crate::guests::Code;
use crate::{SERIAL, run_with};
use vmm::control::{VmAction, VmReply};
use vmm::machine::{Home, Setup};
use vmm::snapshot::{Id, Places};
use vmm::spec::{Memory, Stream, VmSpec};
struct Log;
impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }
    fn log(&self, r: &log::Record) {
        eprintln!(
            "{:?} {}",
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_micros(),
            r.args()
        )
    }
    fn flush(&self) {}
}
#[test]
fn timing() {
    let _ = log::set_boxed_logger(Box::new(Log));
    log::set_max_level(log::LevelFilter::Debug);
    let dir = tempfile::tempdir_in(std::env::var("TDIR").unwrap_or("/tmp".into())).unwrap();
    let code = Code::default().count(0x20_0000, SERIAL).again();
    let start = |name: &str, from| {
        let home = Home {
            places: Places::new(dir.path().join("data")),
            record: dir.path().join(format!("{name}.json")),
        };
        let spec = |spec: &mut VmSpec| {
            spec.serial = Stream::Null;
            spec.memory.size = Memory(1 << 30);
            spec.cpus = 2
        };
        let t = std::time::Instant::now();
        let vm = run_with(&code, spec, |setup: &mut Setup| {
            setup.home = Some(home);
            setup.from = from;
        })
        .unwrap();
        eprintln!("started in {:?}", t.elapsed());
        vm
    };
    let vm = start("a", None);
    std::thread::sleep(std::time::Duration::from_millis(200));
    let mut ids = vec![];
    for i in 0..4 {
        let id = Id::draw().unwrap();
        eprintln!("{:?}", vm.act(VmAction::Snapshot { id, name: format!("s{i}"), comment: String::new() }));
        ids.push(id);
    }
    for i in [3, 0, 1, 1, 1] {
        eprintln!("{:?}", vm.act(VmAction::Rollback { snapshot: ids[i] }));
    }
    for i in 0..3 {
        let b = start(&format!("b{i}"), Some(ids[1]));
        b.done(VmAction::State.clone().into_kill());
    }
    let _ = VmReply::Done;
}
trait K {
    fn into_kill(self) -> VmAction;
}
impl K for VmAction {
    fn into_kill(self) -> VmAction {
        VmAction::Kill
    }
}
