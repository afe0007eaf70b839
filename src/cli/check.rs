//! `balancer check`: reads a file as `run` would, binds nothing, and reports every problem.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
};

use rustix::{
    fs::{Access, access},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use serde_json::json;

use super::{
    output::{is_coloured, print, print_error},
    probe,
};
use crate::{
    base::address::BindAddress,
    config::{
        self, LoadedConfig, Problems,
        files::RealFiles,
        model::{Config, LogOutput},
        problem::{self, Problem},
        yaml::MAX_BYTES,
    },
    health::probe::PoolProbe,
};

/// Name of a document from standard input.
const STDIN: &str = "<stdin>";

/// Exit code 0 when the file may be run, with or without warnings, and 1 when it may not. With
/// `user`, everything is read with that user's rights. With `probes` the backends are asked once,
/// and the code is 1 also when a pool has none that passes.
pub(super) fn run(file: &Path, as_json: bool, user: Option<&str>, probes: bool) -> ExitCode {
    let (name, loaded) = if is_stdin(file) {
        let mut bytes = Vec::new();
        let read = io::stdin()
            .take(MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes);
        let name = PathBuf::from(STDIN);
        let read = read.map(|_| bytes).map_err(|error| {
            let message = format!("cannot read standard input: {error}");
            Problems::of_file(&name, message, "pipe a configuration into it")
        });
        let loaded = {
            let name = name.clone();
            as_user(user, move || {
                config::check(&name, read?, &RealFiles::default())
            })
        };
        (name, loaded)
    } else {
        let path = file.to_owned();
        (file.to_owned(), as_user(user, move || config::load(&path)))
    };
    match loaded {
        Ok(loaded) => report(&name, &loaded, as_json, probes),
        Err(error) => {
            print_error(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-") || file == Path::new("/dev/stdin")
}

fn report(
    file: &Path,
    result: &Result<LoadedConfig, Problems>,
    as_json: bool,
    probes: bool,
) -> ExitCode {
    let (ok, problems): (bool, &[Problem]) = match result {
        Ok(loaded) => (true, &loaded.warnings),
        Err(problems) => (false, &problems.0),
    };
    // The messages first: asking may take a while.
    if !as_json {
        if !problems.is_empty() {
            print_error(&problem::render(problems, is_coloured()));
        }
        if let Ok(loaded) = result {
            print(&summary(file, loaded));
        }
    }
    let asked = result.as_ref().ok().filter(|_| probes);
    let pools = match asked.map(|loaded| probe::ask(&loaded.config)).transpose() {
        Ok(pools) => pools,
        Err(error) => {
            print_error(&format!("error: cannot ask the backends: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if as_json {
        let problems: Vec<_> = problems.iter().map(Problem::to_json).collect();
        let mut document = json!({"ok": ok, "file": file.to_string_lossy(), "problems": problems});
        if let (Some(pools), Some(object)) = (&pools, document.as_object_mut()) {
            object.insert("probe".to_owned(), probe::document(pools));
        }
        print(&document.to_string());
    } else if let Some(pools) = &pools {
        print(&probe::screen(pools));
        for error in probe::errors(pools) {
            print_error(&error);
        }
    }
    if ok && pools.is_none_or(|pools| pools.iter().all(PoolProbe::is_good)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

type Checked = Result<LoadedConfig, Problems>;

/// Runs `load` with the rights of `user`, on a thread of its own: rights belong to threads
/// (credentials(7)).
fn as_user(
    user: Option<&str>,
    load: impl FnOnce() -> Checked + Send + 'static,
) -> Result<Checked, String> {
    let Some(user) = user else { return Ok(load()) };
    let name = user.to_owned();
    let rights = Rights::of(user)?;
    let checked = thread::spawn(move || {
        rights
            .take()
            .map_err(|error| format!("cannot take the rights of `{name}`: {error}; use sudo"))?;
        Ok(load().and_then(|loaded| may_write(&name, loaded)))
    });
    checked
        .join()
        .unwrap_or_else(|_| Err("the check panicked".to_owned()))
}

/// Refuses a configuration whose log file or sockets `user` cannot make.
fn may_write(user: &str, loaded: LoadedConfig) -> Checked {
    let mut problems = Problems::default();
    for (path, key) in written(&loaded.config) {
        let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let is_file = key == "access_log.output" && path.exists();
        let needed = if is_file {
            access(&path, Access::WRITE_OK)
        } else {
            access(folder, Access::WRITE_OK | Access::EXEC_OK)
        };
        if let Err(error) = needed {
            let what = if is_file { path.as_path() } else { folder };
            let message = format!(
                "{key}: user `{user}` may not write to `{}`: {}",
                what.display(),
                io::Error::from(error).kind()
            );
            problems
                .0
                .extend(Problems::of_file(&path, message, "give it to that user").0);
        }
    }
    if problems.0.is_empty() {
        Ok(loaded)
    } else {
        Err(problems)
    }
}

/// The files that the daemon makes, with the keys that name them.
fn written(config: &Config) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    if let LogOutput::File(path) = &config.access_log.output {
        files.push((path.clone(), "access_log.output".to_owned()));
    }
    let admin = config.admin.bind.iter().map(|bind| (bind, "admin.bind"));
    let admin = admin.map(|(bind, key)| (bind, key.to_owned()));
    let listeners = config.listeners.iter().flat_map(|one| {
        let key = format!("listeners.{}.bind", one.name);
        one.binds.iter().map(move |bind| (bind, key.clone()))
    });
    for (bind, key) in admin.chain(listeners) {
        if let BindAddress::Unix(path) = bind
            && !is_made_at_start(path)
        {
            files.push((path.clone(), key));
        }
    }
    files
}

/// True for a path whose directory below `/run` does not exist: the service manager makes it when
/// the daemon starts.
fn is_made_at_start(path: &Path) -> bool {
    path.starts_with("/run") && path.parent().is_some_and(|folder| !folder.exists())
}

/// The identity that decides what a user may read.
struct Rights {
    user: u32,
    group: u32,
    groups: Vec<u32>,
}

impl Rights {
    /// Asks id(1), which knows every source of users that this machine has.
    fn of(user: &str) -> Result<Self, String> {
        let numbers = |option: &str| {
            let asked = Command::new("id").arg(option).arg("--").arg(user).output();
            let output = asked.map_err(|error| format!("cannot run `id`: {error}"))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let words = text.split_whitespace().map(str::parse::<u32>);
            match words.collect::<Result<Vec<_>, _>>() {
                Ok(numbers) if output.status.success() && !numbers.is_empty() => Ok(numbers),
                _ => Err(format!("there is no user `{user}`")),
            }
        };
        let first = |option| {
            let numbers = numbers(option)?;
            numbers
                .first()
                .copied()
                .ok_or_else(|| format!("there is no user `{user}`"))
        };
        Ok(Self {
            user: first("-u")?,
            group: first("-g")?,
            groups: numbers("-G")?,
        })
    }

    /// Takes them for the calling thread. Nothing is to be done for the user that we are.
    fn take(&self) -> io::Result<()> {
        if self.user == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        let groups: Vec<_> = self
            .groups
            .iter()
            .map(|id| rustix::process::Gid::from_raw(*id))
            .collect();
        let group = rustix::process::Gid::from_raw(self.group);
        let user = rustix::process::Uid::from_raw(self.user);
        set_thread_groups(&groups)?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        Ok(())
    }
}

fn summary(file: &Path, loaded: &LoadedConfig) -> String {
    let config = &loaded.config;
    let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
    format!(
        "{}: ok: {}, {}, {}, {}",
        file.display(),
        counted(config.listeners.len(), "listener"),
        counted(config.routes.len(), "route"),
        counted(config.pools.len(), "pool"),
        counted(backends, "backend"),
    )
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
