/* Of ONNX Runtime's C API what docs/board.c calls, at its place in the table, which is fixed since API version 3:
   no package has the runtime's own header. It is used where ONNXRUNTIME_INCLUDE does not name a folder with that one. */
#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 16
#define CALL(name) OrtStatus *(*name)

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 } OrtLoggingLevel;
typedef enum OrtAllocatorType { OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum OrtMemType { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1
} ONNXTensorElementDataType;

typedef struct OrtApi {
  void *skipped_0[2];
  const char *(*GetErrorMessage)(const OrtStatus *);
  CALL(CreateEnv)(OrtLoggingLevel, const char *, OrtEnv **);
  void *skipped_4[3];
  CALL(CreateSession)(const OrtEnv *, const char *, const OrtSessionOptions *, OrtSession **);
  void *skipped_8[1];
  CALL(Run)(OrtSession *, const OrtRunOptions *, const char *const *, const OrtValue *const *, size_t,
            const char *const *, size_t, OrtValue **);
  CALL(CreateSessionOptions)(OrtSessionOptions **);
  void *skipped_11[13];
  CALL(SetIntraOpNumThreads)(OrtSessionOptions *, int);
  CALL(SetInterOpNumThreads)(OrtSessionOptions *, int);
  void *skipped_26[4];
  CALL(SessionGetInputCount)(const OrtSession *, size_t *);
  CALL(SessionGetOutputCount)(const OrtSession *, size_t *);
  void *skipped_32[1];
  CALL(SessionGetInputTypeInfo)(const OrtSession *, size_t, OrtTypeInfo **);
  void *skipped_34[2];
  CALL(SessionGetInputName)(const OrtSession *, size_t, OrtAllocator *, char **);
  CALL(SessionGetOutputName)(const OrtSession *, size_t, OrtAllocator *, char **);
  void *skipped_38[11];
  CALL(CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *, size_t, const int64_t *, size_t,
                                       ONNXTensorElementDataType, OrtValue **);
  void *skipped_50[5];
  CALL(CastTypeInfoToTensorInfo)(const OrtTypeInfo *, const OrtTensorTypeAndShapeInfo **);
  void *skipped_56[4];
  CALL(GetTensorElementType)(const OrtTensorTypeAndShapeInfo *, ONNXTensorElementDataType *);
  CALL(GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *, size_t *);
  CALL(GetDimensions)(const OrtTensorTypeAndShapeInfo *, int64_t *, size_t);
  void *skipped_63[6];
  CALL(CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo **);
  void *skipped_70[8];
  CALL(GetAllocatorWithDefaultOptions)(OrtAllocator **);
  void *skipped_79[17];
  void (*ReleaseValue)(OrtValue *);
} OrtApi;

typedef struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t);
  const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);
