// effdl-rpcd: serves TVM's RPC protocol on loopback, to clients that know a token.
//
// effdl-rpcd --port N --token-file FILE --work-dir DIR [--session-seconds N] [--emulated]
//
// Every connection gets a process of its own. It has 5 s for its handshake, however
// slowly it sends, and one session at a time runs, for at most --session-seconds. A
// client that hangs up takes its session with it, and what it uploaded.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <unistd.h>

#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <thread>

namespace fs = std::filesystem;
namespace ffi = tvm::ffi;

namespace {

constexpr int32_t kMagic = 0xFF271, kBusy = kMagic + 1, kMismatch = kMagic + 2;
constexpr int32_t kMaxKeyBytes = 512;
constexpr unsigned kHandshakeSeconds = 5;
constexpr size_t kMaxConnections = 16;
constexpr char kServerKey[] = "server:effdl";

struct Options {
  int port = -1;
  std::string token;
  fs::path work_dir;
  unsigned session_seconds = 3600;
  bool emulated = false;
};

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "effdl-rpcd: %s\n", message.c_str());
  std::exit(2);
}

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string ReadToken(const fs::path& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) Fail("cannot read " + path.string());
  if (info.st_uid != geteuid() || (info.st_mode & 077) != 0)
    Fail(path.string() + " must be yours alone: chmod 600 " + path.string());
  std::string token = ReadFile(path);
  while (!token.empty() && std::isspace(static_cast<unsigned char>(token.back()))) token.pop_back();
  if (token.size() < 32 || token.size() > 256) Fail("the token wanted 32 to 256 characters");
  return token;
}

unsigned ParseNumber(const char* text, unsigned long least, unsigned long most) {
  char* end = nullptr;
  unsigned long value = std::strtoul(text, &end, 10);
  if (*text < '0' || *text > '9' || *end != '\0' || value < least || value > most)
    Fail("wanted a number from " + std::to_string(least) + " to " + std::to_string(most) +
         ", got " + text);
  return static_cast<unsigned>(value);
}

Options ParseOptions(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name == "--emulated") {
      options.emulated = true;
      continue;
    }
    if (++i == argc) Fail(name + " wanted a value, or is unknown");
    if (name == "--port") options.port = ParseNumber(argv[i], 0, 65535);
    else if (name == "--token-file") options.token = ReadToken(argv[i]);
    else if (name == "--work-dir") options.work_dir = fs::absolute(argv[i]);
    else if (name == "--session-seconds") options.session_seconds = ParseNumber(argv[i], 1, 86400);
    else Fail("unknown option " + name);
  }
  if (options.port < 0 || options.token.empty() || options.work_dir.empty())
    Fail("usage: --port N --token-file FILE --work-dir DIR [--session-seconds N] [--emulated]");
  return options;
}

// Takes as long whatever the texts are, so that a clock tells nothing of the token.
bool EqualInConstantTime(const std::string& got, const std::string& wanted) {
  unsigned char difference = got.size() != wanted.size();
  for (size_t i = 0; i < wanted.size(); ++i)
    difference |= static_cast<unsigned char>(wanted[i] ^ (got.empty() ? 0 : got[i % got.size()]));
  return difference == 0;
}

bool ReceiveAll(int fd, void* data, size_t size) {
  for (size_t done = 0; done < size;) {
    ssize_t n = recv(fd, static_cast<char*>(data) + done, size - done, 0);
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

bool SendAll(int fd, const void* data, size_t size) {
  for (size_t done = 0; done < size;) {
    ssize_t n = send(fd, static_cast<const char*>(data) + done, size - done, MSG_NOSIGNAL);
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

// The client's first words: magic, length, "client:effdl [-timeout=N] -token=TOKEN".
bool ReceiveKey(int fd, std::string* key) {
  int32_t magic = 0, size = 0;
  if (!ReceiveAll(fd, &magic, sizeof(magic)) || magic != kMagic) return false;
  if (!ReceiveAll(fd, &size, sizeof(size)) || size < 1 || size > kMaxKeyBytes) return false;
  key->resize(static_cast<size_t>(size));
  return ReceiveAll(fd, key->data(), key->size());
}

bool IsAdmitted(const std::string& key, const Options& options) {
  std::istringstream words(key);
  std::string word, token;
  if (!(words >> word) || word != "client:effdl") return false;
  while (words >> word)
    if (word.rfind("-token=", 0) == 0) token = word.substr(7);
  return EqualInConstantTime(token, options.token);
}

// User-mode QEMU makes /proc/self/exe up, but not this thread's entry.
bool RunsUnderEmulator() {
  char shown[PATH_MAX] = {}, real[PATH_MAX] = {};
  if (readlink("/proc/self/exe", shown, sizeof(shown) - 1) < 0) return false;
  if (readlink("/proc/thread-self/exe", real, sizeof(real) - 1) < 0) return false;
  return std::strcmp(shown, real) != 0;
}

// The file without line ends and without the zero that closes device-tree texts.
std::string ReadLine(const fs::path& path) {
  std::string text = ReadFile(path);
  return text.substr(0, text.find_first_of(std::string("\n\0", 2)));
}

std::map<std::string, std::string> FirstProcessor() {
  std::map<std::string, std::string> fields;
  std::istringstream lines(ReadFile("/proc/cpuinfo"));
  for (std::string line; std::getline(lines, line) && !line.empty();) {
    size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    size_t end = line.find_last_not_of(" \t", colon - 1), begin = colon + 1;
    while (begin < line.size() && line[begin] == ' ') ++begin;
    fields[line.substr(0, end + 1)] = line.substr(begin);
  }
  return fields;
}

// Lines of "name<tab>value": what this device is, for the client's records.
std::string Describe(const Options& options) {
  utsname system;
  uname(&system);
  auto cpu = FirstProcessor();
  bool foreign = std::string(system.machine) == "aarch64" && cpu.count("vendor_id") != 0;
  bool emulated = options.emulated || foreign || RunsUnderEmulator();
  std::ostringstream text;
  text << "machine\t" << system.machine << "\nemulated\t" << emulated << "\ncores\t"
       << std::thread::hardware_concurrency() << "\ngovernor\t"
       << ReadLine("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") << "\nboard\t"
       << ReadLine("/proc/device-tree/model") << "\n";
  for (const char* name : {"model name", "CPU implementer", "CPU part", "Features", "flags"})
    text << name << "\t" << cpu[name] << "\n";
  return text.str();
}

void RegisterFunctions(const Options& options, const fs::path& folder) {
  namespace refl = tvm::ffi::reflection;
  // Only the last part of a name counts: nothing is written outside the folder.
  auto path_of = [folder](const std::string& name) {
    fs::path file = fs::path(name).filename();
    if (file.empty() || file == "." || file == "..") TVM_FFI_THROW(ValueError) << "no file name";
    return (folder / file).string();
  };
  refl::GlobalDef()
      .def("tvm.rpc.server.workpath",
           [path_of](ffi::String name) { return ffi::String(path_of(name)); })
      .def("tvm.rpc.server.load_module",
           [path_of](ffi::String name) { return ffi::Module::LoadFromFile(path_of(name)); })
      .def("effdl.rpcd.describe", [options] { return ffi::String(Describe(options)); });
}

// The client's hanging up ends the session even in the middle of a long run.
void EndWithClient(int fd) {
  std::thread([fd] {
    pollfd watched{fd, POLLRDHUP, 0};
    while (poll(&watched, 1, -1) < 0 && errno == EINTR) {
    }
    sleep(1);
    _exit(0);
  }).detach();
}

[[noreturn]] void Serve(int fd, const Options& options) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  alarm(kHandshakeSeconds);
  std::string key;
  if (!ReceiveKey(fd, &key)) _exit(1);
  int lock = open((options.work_dir / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  int32_t code = kMagic;
  if (!IsAdmitted(key, options)) code = kMismatch;
  else if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0) code = kBusy;
  // The folder stands before the client hears that it is in: it may count on it.
  fs::path folder = options.work_dir / std::to_string(getpid());
  if (code == kMagic && (mkdir(folder.c_str(), 0700) != 0 || chdir(folder.c_str()) != 0)) _exit(1);
  if (!SendAll(fd, &code, sizeof(code)) || code != kMagic) _exit(1);
  int32_t size = sizeof(kServerKey) - 1;
  if (!SendAll(fd, &size, sizeof(size)) || !SendAll(fd, kServerKey, size)) _exit(1);
  alarm(options.session_seconds);
  EndWithClient(fd);
  int status = 0;
  try {
    RegisterFunctions(options, folder);
    ffi::Function::GetGlobalRequired("rpc.ServerLoop")(fd);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "effdl-rpcd: session ended: %.500s\n", error.what());
    status = 1;
  }
  std::fflush(nullptr);
  _exit(status);
}

int Listen(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || listen(fd, 16) != 0)
    Fail("cannot listen on 127.0.0.1:" + std::to_string(port) + ": " + std::strerror(errno));
  return fd;
}

int PortOf(int fd) {
  sockaddr_in address{};
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.sin_port);
}

}  // namespace

int main(int argc, char** argv) {
  Options options = ParseOptions(argc, argv);
  umask(077);
  setenv("TVM_NUM_THREADS", "1", 0);
  std::error_code ignored;
  fs::create_directories(options.work_dir, ignored);
  int listener = Listen(options.port);
  std::printf("effdl-rpcd: listening on 127.0.0.1:%d\n", PortOf(listener));
  std::fflush(stdout);
  size_t num_children = 0;
  while (true) {
    pollfd watched{listener, POLLIN, 0};
    poll(&watched, 1, 500);
    for (pid_t child; (child = waitpid(-1, nullptr, WNOHANG)) > 0; --num_children)
      fs::remove_all(options.work_dir / std::to_string(child), ignored);
    if (!(watched.revents & POLLIN) || num_children >= kMaxConnections) continue;
    int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    pid_t child = fork();
    if (child == 0) {
      close(listener);
      Serve(fd, options);
    }
    if (child > 0) ++num_children;
    close(fd);
  }
}
