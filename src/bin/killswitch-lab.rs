//! The laboratory's command: `killswitch demo` runs it.

fn main() -> std::process::ExitCode {
    killswitch::lab::main()
}
