/* What devices/board.py does, for a board that has no Python: times one ONNX model with ONNX Runtime's C API.

   cc -std=c99 -O2 -o board board.c -I onnxruntime/include -L onnxruntime/lib -lonnxruntime -Wl,-rpath,'$ORIGIN'

   Copy `board` and libonnxruntime.so.1 into a folder on the board and name it in the card: runner = "folder/board".
   It reads one JSON request a line on stdin and answers each with one JSON line, as board.py does: outfit, probe,
   weather, serve and block, which is what `devices check` and `bench` ask for. One thread, the CPU's kernels, inputs of
   float32. It needs Linux, and ends when stdin does. What it cannot do it refuses with {"error": text}. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "onnxruntime_c_api.h"

#define MOST_INPUTS 64
#define MOST_AXES 16
#ifndef WARMUP_S
#define WARMUP_S 0.5
#endif
#define MOST_WARMUP 100000

static const OrtApi *api;
static OrtSession *session; /* the model that is served, its inputs, the names of both ends */
static OrtValue *inputs[MOST_INPUTS];
static char *input_names[MOST_INPUTS], *output_names[MOST_INPUTS];
static size_t input_count, output_count;

/* --- what is asked: a line that Python's json.dumps wrote, so `"key": ` stands nowhere but before a value ------ */

static const char *value_of(const char *request, const char *key) {
  char wanted[64];
  snprintf(wanted, sizeof wanted, "\"%s\": ", key);
  const char *found = strstr(request, wanted);
  return found ? found + strlen(wanted) : "";
}

static long number(const char *request, const char *key) { return strtol(value_of(request, key), NULL, 10); }

static int begins(const char *request, const char *key, const char *text) {
  return strncmp(value_of(request, key), text, strlen(text)) == 0;
}

/* A string without escapes: all that rankfold sends but for odd names of a workdir. */
static int text_of(const char *request, const char *key, char *out, size_t size) {
  const char *from = value_of(request, key);
  size_t length = *from == '"' ? strcspn(from + 1, "\"\\") : 0;
  if (*from != '"' || from[1 + length] != '"' || length >= size) return 0;
  memcpy(out, from + 1, length);
  out[length] = 0;
  return 1;
}

/* --- what is answered -------------------------------------------------------------------------------------- */

static void print_text(const char *text) {
  putchar('"');
  for (; *text && *text != '\n'; ++text)
    putchar(*text < ' ' || *text > '~' || *text == '"' || *text == '\\' ? '?' : *text);
  putchar('"');
}

static void print_seconds(const char *name, const double *samples, long count) {
  printf("\"%s\": [", name);
  for (long i = 0; i < count; ++i) printf("%s%.9g", i ? ", " : "", samples[i]);
  printf("]");
}

static void refuse(const char *what, const char *which) {
  printf("{\"error\": ");
  char text[512];
  snprintf(text, sizeof text, "%s %s", what, which);
  print_text(text);
  printf("}");
}

/* --- what the system says ---------------------------------------------------------------------------------- */

static double seconds(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* What stands after `key` and a colon in a file of /proc. */
static int line_of(const char *path, const char *key, char *out, int size) {
  FILE *file = fopen(path, "r");
  int found = 0;
  char line[512];
  while (file && !found && fgets(line, sizeof line, file)) {
    char *colon = strchr(line, ':');
    found = colon && strncmp(line, key, strlen(key)) == 0;
    if (found) snprintf(out, (size_t)size, "%s", colon + 1 + strspn(colon + 1, " \t"));
  }
  if (file) fclose(file);
  return found;
}

static void print_bytes(const char *name, const char *path, const char *key) {
  char kilobytes[64];
  if (line_of(path, key, kilobytes, sizeof kilobytes)) printf("\"%s\": %lld", name, 1024 * atoll(kilobytes));
  else printf("\"%s\": null", name);
}

static void print_cores(const char *name) {
  cpu_set_t mask;
  const char *comma = "";
  sched_getaffinity(0, sizeof mask, &mask);
  printf("\"%s\": [", name);
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &mask)) printf("%s%d", comma, core), comma = ", ";
  printf("]");
}

static void outfit(const char *request) {
  struct utsname system;
  struct statvfs disk;
  char folder[4096];
  int is_there = text_of(request, "folder", folder, sizeof folder) && statvfs(folder, &disk) == 0;
  if (!is_there && statvfs(".", &disk)) { /* models make the folder when they come */
    refuse("cannot look at the disk:", strerror(errno));
    return;
  }
  uname(&system);
  printf("{\"python_version\": \"none\", \"architecture\": ");
  print_text(system.machine);
  printf(", \"libc\": null, \"versions\": {\"onnxruntime\": ");
  print_text(OrtGetApiBase()->GetVersionString());
  unsigned long long free_bytes = (unsigned long long)disk.f_bavail * disk.f_frsize;
  printf("}, \"free_bytes\": %llu, \"time_s\": %ld}", free_bytes, (long)time(NULL));
}

static void probe(void) {
  struct utsname system;
  char cpu[256];
  uname(&system);
  printf("{\"architecture\": ");
  print_text(system.machine);
  printf(", \"cpu_model\": ");
  if (line_of("/proc/cpuinfo", "model name", cpu, sizeof cpu)) print_text(cpu);
  else printf("null");
  printf(", \"isa\": [], \"logical_cores\": %ld, ", sysconf(_SC_NPROCESSORS_ONLN));
  print_cores("affinity");
  printf(", ");
  print_bytes("memory_bytes", "/proc/meminfo", "MemTotal");
  printf(", \"kernel\": ");
  print_text(system.release);
  printf(", \"os\": null, \"hypervisor\": null, \"python_version\": \"none\", \"numpy_version\": \"none\", ");
  printf("\"onnxruntime_version\": ");
  print_text(OrtGetApiBase()->GetVersionString());
  printf(", \"providers\": [\"CPUExecutionProvider\"]}");
}

static void weather(void) {
  double load = 0.0;
  if (getloadavg(&load, 1) == 1) printf("{\"load_1min\": %g, ", load);
  else printf("{\"load_1min\": null, ");
  print_bytes("memory_available_bytes", "/proc/meminfo", "MemAvailable");
  printf("}");
}

/* --- the model --------------------------------------------------------------------------------------------- */

static const char *failed(OrtStatus *status) { return status ? api->GetErrorMessage(status) : NULL; }

static const char *run(double *took_s) {
  OrtValue *outputs[MOST_INPUTS] = {NULL};
  double begin = seconds(CLOCK_MONOTONIC);
  const char *why = failed(api->Run(session, NULL, (const char *const *)input_names, (const OrtValue *const *)inputs,
                                    input_count, (const char *const *)output_names, output_count, outputs));
  *took_s = seconds(CLOCK_MONOTONIC) - begin;
  for (size_t i = 0; i < output_count; ++i) api->ReleaseValue(outputs[i]);
  return why;
}

/* Nearly normal numbers, fixed by the seed and never denormal. */
static float next_normal(uint64_t *state) {
  double sum = -6.0;
  for (int i = 0; i < 12; ++i) {
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    sum += (double)(*state >> 11) / 9007199254740992.0;
  }
  return (float)(fabs(sum) < 1e-3 ? 1e-3 : sum);
}

/* One input of float32, its open first dimension 1; what is wrong with it, or NULL. */
static const char *make_input(size_t index, uint64_t *state, int64_t *shape, size_t *axes) {
  OrtTypeInfo *type;
  const OrtTensorTypeAndShapeInfo *tensor;
  enum ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  OrtMemoryInfo *memory;
  const char *why;
  if ((why = failed(api->SessionGetInputTypeInfo(session, index, &type)))) return why;
  if ((why = failed(api->CastTypeInfoToTensorInfo(type, &tensor)))) return why;
  if (tensor && (why = failed(api->GetTensorElementType(tensor, &element)))) return why;
  if (element != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return "an input is no tensor of float32";
  if ((why = failed(api->GetDimensionsCount(tensor, axes)))) return why;
  if (*axes > MOST_AXES) return "an input has too many dimensions";
  if ((why = failed(api->GetDimensions(tensor, shape, *axes)))) return why;
  size_t count = 1;
  for (size_t axis = 0; axis < *axes; ++axis) {
    if (axis == 0 && shape[axis] < 0) shape[axis] = 1;
    if (shape[axis] < 1) return "only the first dimension of an input may be open";
    count *= (size_t)shape[axis];
  }
  float *data = malloc(count * sizeof *data);
  if (!data) return "no memory for the inputs";
  for (size_t i = 0; i < count; ++i) data[i] = next_normal(state);
  if ((why = failed(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory)))) return why;
  return failed(api->CreateTensorWithDataAsOrtValue(memory, data, count * sizeof *data, shape, *axes,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &inputs[index]));
}

static const char *open_session(const char *path) {
  OrtEnv *environment;
  OrtSessionOptions *options;
  OrtAllocator *allocator;
  const char *why;
  if ((why = failed(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "rankfold", &environment)))) return why;
  if ((why = failed(api->CreateSessionOptions(&options)))) return why;
  if ((why = failed(api->SetIntraOpNumThreads(options, 1)))) return why;
  if ((why = failed(api->SetInterOpNumThreads(options, 1)))) return why;
  if ((why = failed(api->CreateSession(environment, path, options, &session)))) return why;
  if ((why = failed(api->SessionGetInputCount(session, &input_count)))) return why;
  if ((why = failed(api->SessionGetOutputCount(session, &output_count)))) return why;
  if (input_count > MOST_INPUTS || output_count > MOST_INPUTS) return "too many inputs or outputs";
  if ((why = failed(api->GetAllocatorWithDefaultOptions(&allocator)))) return why;
  for (size_t i = 0; i < input_count; ++i)
    if ((why = failed(api->SessionGetInputName(session, i, allocator, &input_names[i])))) return why;
  for (size_t i = 0; i < output_count; ++i)
    if ((why = failed(api->SessionGetOutputName(session, i, allocator, &output_names[i])))) return why;
  return NULL;
}

static int pin(const char *cores) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  char *end;
  int some = 0;
  for (const char *at = cores + 1;; at = end + strspn(end, ", "), some = 1) {
    long core = strtol(at, &end, 10);
    if (end == at) break;
    CPU_SET((size_t)core, &mask);
  }
  return !some || sched_setaffinity(0, sizeof mask, &mask) == 0;
}

static void serve(const char *request) {
  static double warmup[MOST_WARMUP];
  static int64_t shapes[MOST_INPUTS][MOST_AXES];
  static size_t axes[MOST_INPUTS];
  char path[4096];
  const char *why;
  if (session) { refuse("one process serves one model", ""); return; }
  if (!text_of(request, "model", path, sizeof path)) { refuse("a path without escapes is expected", ""); return; }
  if (number(request, "threads") != 1) { refuse("it runs one thread only;", "leave out --threads"); return; }
  if (!begins(request, "provider", "\"cpu\"")) { refuse("it has the provider cpu only", ""); return; }
  if (!begins(request, "session_config", "{}")) { refuse("it takes no --session-config", ""); return; }
  if (!begins(request, "shapes", "{}")) { refuse("it takes no --shape", ""); return; }
  if (!begins(request, "inputs", "null")) { refuse("it takes no --inputs", ""); return; }
  if (!pin(value_of(request, "cores"))) { refuse("cannot stay on these cores:", strerror(errno)); return; }
  char baseline[64] = "";
  line_of("/proc/self/status", "VmRSS", baseline, sizeof baseline);
  double begin = seconds(CLOCK_MONOTONIC);
  if ((why = open_session(path))) { refuse("the runtime does not load it:", why); return; }
  double creation_s = seconds(CLOCK_MONOTONIC) - begin, first_s;
  uint64_t state = 0x9E3779B97F4A7C15u + (uint64_t)number(request, "seed");
  for (size_t i = 0; i < input_count; ++i)
    if ((why = make_input(i, &state, shapes[i], &axes[i]))) { refuse(input_names[i], why); return; }
  if ((why = run(&first_s))) { refuse("it does not run:", why); return; }
  double until = seconds(CLOCK_MONOTONIC) + WARMUP_S;
  long runs = 0;
  while (runs < 3 || (runs < MOST_WARMUP && seconds(CLOCK_MONOTONIC) < until)) run(&warmup[runs++]);
  printf("{\"session_creation_s\": %.9g, \"first_run_s\": %.9g, ", creation_s, first_s);
  print_seconds("warmup_s", warmup, runs);
  printf(", \"baseline_rss_bytes\": %lld, ", 1024 * atoll(baseline));
  print_bytes("peak_rss_bytes", "/proc/self/status", "VmHWM");
  printf(", \"providers\": [\"CPUExecutionProvider\"], \"nodes_by_provider\": {}, \"input_shapes\": {");
  for (size_t i = 0; i < input_count; ++i) {
    if (i) printf(", ");
    print_text(input_names[i]);
    printf(": [");
    for (size_t axis = 0; axis < axes[i]; ++axis) printf("%s%lld", axis ? ", " : "", (long long)shapes[i][axis]);
    printf("]");
  }
  printf("}}");
}

static void block(const char *request) {
  long runs = number(request, "runs"), dropped = number(request, "dropped");
  double *samples = runs > 0 ? malloc((size_t)runs * sizeof *samples) : NULL, ignored;
  struct rusage before, after;
  const char *why = NULL;
  if (!session || !samples) { refuse("no model is served, or no runs are asked for", ""); return; }
  for (long i = 0; i < dropped; ++i) run(&ignored);
  getrusage(RUSAGE_SELF, &before);
  double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
  for (long i = 0; i < runs && !why; ++i) why = run(&samples[i]);
  cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
  getrusage(RUSAGE_SELF, &after);
  if (why) {
    refuse("it does not run:", why);
  } else {
    printf("{");
    print_seconds("samples_s", samples, runs);
    printf(", \"cpu_s\": %.9g, \"steal_s\": null, ", cpu);
    printf("\"involuntary_switches\": %ld}", after.ru_nivcsw - before.ru_nivcsw);
  }
  free(samples);
}

int main(void) {
  char *request = NULL, command[32];
  size_t size = 0;
  setenv("ORT_DISABLE_TELEMETRY", "1", 1); /* recent libraries start an upload thread */
  api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!api) {
    fprintf(stderr, "the header is newer than libonnxruntime %s\n", OrtGetApiBase()->GetVersionString());
    return 1;
  }
  while (getline(&request, &size, stdin) > 0) {
    if (!text_of(request, "command", command, sizeof command)) command[0] = 0;
    if (!strcmp(command, "outfit")) outfit(request);
    else if (!strcmp(command, "probe")) probe();
    else if (!strcmp(command, "weather")) weather();
    else if (!strcmp(command, "serve")) serve(request);
    else if (!strcmp(command, "block")) block(request);
    else refuse("a runner in C does not know:", command);
    putchar('\n');
    if (fflush(stdout)) return 1;
  }
  return 0;
}
